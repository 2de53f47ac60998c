//! Fills the templates. Every value is escaped for the format of its file, whatever it is.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value, context};

use super::ReportError;
use super::junit::Suite;
use super::page::Page;
use super::text;
use super::tune::TunePage;

const HTML: (&str, &str) = ("report.html", include_str!("report.html.jinja"));
const CSS: (&str, &str) = ("report.css", include_str!("report.css"));
const TUNE: (&str, &str) = ("tune.html", include_str!("tune.html.jinja"));
const MARKDOWN: (&str, &str) = ("report.md", include_str!("report.md.jinja"));
const JUNIT: (&str, &str) = ("junit.xml", include_str!("junit.xml.jinja"));

/// `report.html`: one page without a single request.
pub(super) fn html(page: &Page, dark_rules: &str) -> Result<String, ReportError> {
    filled(HTML, context! { page => Serde(page), dark_rules })
}

/// `tune.html`: the same for the answer of a tuner.
pub(super) fn tune(page: &TunePage, dark_rules: &str) -> Result<String, ReportError> {
    filled(TUNE, context! { page => Serde(page), dark_rules })
}

/// `report.md`.
pub(super) fn markdown(page: &Page) -> Result<String, ReportError> {
    filled(MARKDOWN, context! { page => Serde(page) })
}

/// `junit.xml`.
pub(super) fn junit(suite: &Suite) -> Result<String, ReportError> {
    filled(JUNIT, context! { suite => Serde(suite) })
}

fn filled((file, source): (&'static str, &'static str), values: Value) -> Result<String, ReportError> {
    let fill = || -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?,
        );
        environment.set_auto_escape_callback(escaping);
        environment.set_formatter(format);
        environment.add_template(CSS.0, CSS.1)?;
        environment.add_template(file, source)?;
        environment.get_template(file)?.render(values)
    };
    fill().map_err(|source| ReportError::Template { file, source })
}

fn escaping(file: &str) -> AutoEscape {
    match file.rsplit('.').next() {
        Some("html" | "xml") => AutoEscape::Html,
        Some("md") => AutoEscape::Custom("markdown".into()),
        _ => AutoEscape::None,
    }
}

fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match state.auto_escape() {
        AutoEscape::Custom(_) if value.kind() == ValueKind::String && !value.is_safe() => {
            out.write_str(&text::markdown(value.as_str().unwrap_or_default())).map_err(minijinja::Error::from)
        }
        AutoEscape::Custom(_) => out.write_str(&value.to_string()).map_err(minijinja::Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}
