//! Reports of rich, bare, extreme and hostile analyses.

#[path = "report/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;

use rigscale::record::{Analysis, Interval, Outcome};
use rigscale::report::{Beside, Rendered, ReportError, Summary, render, render_with};
use rigscale::units::{Seconds, TokensPerSecond};
use roxmltree::{Document, Node, ParsingOptions};

fn all_fixtures() -> Vec<(&'static str, Analysis)> {
    vec![
        ("rich", fixture::rich()),
        ("failing", fixture::failing()),
        ("empty", fixture::empty()),
        ("bare", fixture::bare()),
        ("hostile", fixture::hostile()),
    ]
}

fn rendered(run: &Analysis) -> Rendered {
    render(&[run]).expect("a report")
}

fn bytes<'a>(report: &'a Rendered, path: &str) -> &'a [u8] {
    &report.files.iter().find(|(name, _)| name == path).unwrap_or_else(|| panic!("{path} is missing")).1
}

fn text<'a>(report: &'a Rendered, path: &str) -> &'a str {
    std::str::from_utf8(bytes(report, path)).expect("UTF-8")
}

fn parsed(text: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).unwrap_or_else(|error| panic!("{error}"))
}

fn named<'a>(document: &'a Document<'a>, tag: &str) -> Vec<Node<'a, 'a>> {
    document.descendants().filter(|node| node.tag_name().name() == tag).collect()
}

#[test]
fn every_file_of_every_report_parses() {
    for (name, run) in all_fixtures() {
        for (path, content) in &rendered(&run).files {
            match path.rsplit('.').next() {
                Some("html" | "xml" | "svg") => {
                    let text = std::str::from_utf8(content).expect("UTF-8");
                    assert!(parsed(text).root_element().has_children(), "{name}: {path}");
                }
                Some("png") => {
                    let mut reader = png::Decoder::new(content.as_slice()).read_info().expect("a PNG");
                    let mut pixels = vec![0; reader.output_buffer_size()];
                    reader.next_frame(&mut pixels).expect("a whole PNG");
                    assert!(pixels.iter().any(|value| *value < 128), "{name}: {path} is blank");
                }
                other => assert_eq!(other, Some("md"), "{name}: {path}"),
            }
        }
    }
}

#[test]
fn charts_are_there_where_there_is_something_to_show() {
    let charts = |run: &Analysis| rendered(run).files.iter().filter(|(path, _)| path.ends_with(".png")).count();
    assert_eq!(charts(&fixture::rich()), 5);
    assert_eq!(charts(&fixture::bare()), 4, "no timeline");
    assert_eq!(charts(&fixture::empty()), 0);
}

#[test]
fn a_png_is_its_svg_at_twice_the_size() {
    let report = rendered(&fixture::rich());
    let svg = parsed(text(&report, "charts/efficiency.svg"));
    let reader = png::Decoder::new(bytes(&report, "charts/efficiency.png")).read_info().expect("a PNG");
    let side =
        |name: &str| svg.root_element().attribute(name).and_then(|side| side.parse::<f64>().ok()).expect("a side");
    assert_eq!(
        (f64::from(reader.info().width), f64::from(reader.info().height)),
        (side("width") * 2.0, side("height") * 2.0)
    );
}

#[test]
fn the_page_makes_no_request() {
    for (name, run) in all_fixtures() {
        let report = render(&[&run, &fixture::rich()]).expect("a report");
        let document = parsed(text(&report, "report.html"));
        for node in document.descendants() {
            assert!(
                !["script", "img", "image", "iframe", "object", "embed", "use", "base", "form"]
                    .contains(&node.tag_name().name()),
                "{name}: {node:?}"
            );
            for attribute in node.attributes() {
                let value = attribute.value();
                assert!(!attribute.name().starts_with("on"), "{name}: {attribute:?}");
                if ["href", "src", "srcset", "action", "background"].contains(&attribute.name()) {
                    assert!(value.starts_with('#') || value.starts_with("data:"), "{name}: {attribute:?}");
                }
            }
        }
        for style in named(&document, "style") {
            let css = style.text().unwrap_or_default();
            assert!(!css.contains("@import") && !css.contains("url("), "{name}");
        }
    }
}

#[test]
fn links_lead_to_something_on_the_page_and_ids_are_unique() {
    let report = rendered(&fixture::rich());
    let document = parsed(text(&report, "report.html"));
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    for id in document.descendants().filter_map(|node| node.attribute("id")) {
        *ids.entry(id).or_default() += 1;
    }
    assert!(ids.values().all(|count| *count == 1), "{ids:?}");
    for node in document.descendants() {
        let targets =
            [node.attribute("href").and_then(|link| link.strip_prefix('#')), node.attribute("aria-labelledby")];
        for target in targets.into_iter().flatten() {
            assert!(ids.contains_key(target), "{target}");
        }
    }
    for chart in named(&document, "svg") {
        assert_eq!(chart.attribute("role"), Some("img"));
        assert!(chart.first_element_child().is_some_and(|title| title.has_tag_name("title") || title.text().is_some()));
    }
}

/// Names of all elements outside charts, in order.
fn skeleton(html: &str) -> Vec<String> {
    let document = parsed(html);
    let outside = |node: &Node<'_, '_>| node.ancestors().skip(1).all(|above| above.tag_name().name() != "svg");
    document
        .descendants()
        .filter(|node| node.is_element() && outside(node))
        .map(|node| node.tag_name().name().into())
        .collect()
}

#[test]
fn hostile_text_stays_text_in_html() {
    let (hostile, tame) = (rendered(&fixture::hostile()), {
        let mut tame = fixture::failing();
        tame.verdict.reasons.truncate(2);
        rendered(&tame)
    });
    let (hostile, tame) = (text(&hostile, "report.html"), text(&tame, "report.html"));
    assert_eq!(skeleton(hostile), skeleton(tame), "text from outside made or closed an element");
    let shown =
        parsed(hostile).descendants().filter_map(|node| node.text()).filter(|text| text.contains("<script>")).count();
    assert!(20 < shown, "the text is shown, not dropped: {shown}");
    assert!(hostile.chars().all(|c| c == '\n' || !c.is_control()), "control characters are replaced");
}

/// Cell borders of every line: pipes that no backslash escapes.
fn borders(markdown: &str) -> Vec<usize> {
    markdown.lines().map(|line| line.replace("\\\\", "").replace("\\|", "").matches('|').count()).collect()
}

#[test]
fn hostile_text_stays_text_in_markdown() {
    let hostile = rendered(&fixture::hostile());
    let mut tame = fixture::failing();
    tame.verdict.reasons.truncate(2);
    let tame = rendered(&tame);
    let (hostile, tame) = (text(&hostile, "report.md"), text(&tame, "report.md"));
    assert_eq!(borders(hostile), borders(tame), "text from outside made or closed a cell or a line");
    assert!(!hostile.contains('<') && !hostile.contains("[a]("));
    assert!(!hostile.replace("\\://", "").contains("://"), "a bare address would become a link");
}

#[test]
fn the_same_analyses_give_the_same_bytes() {
    let (first, second) = (fixture::failing(), fixture::rich());
    assert_eq!(render(&[&first, &second]).expect("a report"), render(&[&first, &second]).expect("a report"));
}

#[test]
fn what_cannot_be_shown_is_refused_by_name() {
    assert!(matches!(render(&[]), Err(ReportError::NoAnalysis)));
    let mut run = fixture::rich();
    run.points[1].loss.slowdown_s = Seconds(f64::NAN);
    assert!(matches!(render(&[&run]), Err(ReportError::NotFinite { run, .. }) if run.contains("workstation")));
    let mut run = fixture::rich();
    run.points[0].world = 0;
    assert!(matches!(render(&[&fixture::rich(), &run]), Err(ReportError::NoRanks { .. })));
}

#[test]
fn extreme_numbers_are_drawn_somehow() {
    for extreme in [0.0, -1.0, 1e-300, 1e300, f64::MAX, f64::MIN] {
        let mut run = fixture::failing();
        run.target = extreme.abs();
        for point in &mut run.points {
            point.world = if extreme < 1.0 { point.world } else { usize::MAX };
            point.efficiency = Interval { estimate: extreme, low: -extreme, high: extreme };
            (point.solo_rate, point.ddp_rate) = (TokensPerSecond(extreme), TokensPerSecond(-extreme));
            point.phases.values_mut().for_each(|phases| phases.backward_s = Seconds(extreme));
            for times in point.distribution.values_mut() {
                times.quantiles_s[6] = Seconds(extreme);
                times.bins = vec![0, usize::MAX, usize::MAX];
            }
        }
        let timeline = run.timeline.as_mut().expect("a timeline");
        timeline.lanes[0].start_s = Seconds(extreme);
        timeline.lanes[1].buckets[0].end_s = Seconds(extreme);
        let report = rendered(&run);
        assert!(report.files.len() >= 3);
        assert!(!Summary { analysis: &run, colour: false }.to_string().is_empty());
    }
}

/// A text of a chart: its box in pixels, narrower and lower than any font draws it.
fn boxes(svg: &str) -> Vec<(String, [f64; 4])> {
    let document = parsed(svg);
    let number = |node: &Node<'_, '_>, name: &str| node.attribute(name).and_then(|text| text.parse::<f64>().ok());
    let text_box = |node: Node<'_, '_>| {
        let (x, y, em) = (number(&node, "x")?, number(&node, "y")?, number(&node, "font-size")?);
        let words = node.text()?.trim().to_owned();
        let width = words.chars().count() as f64 * em * 0.45;
        let left = match node.attribute("text-anchor") {
            Some("middle") => x - width / 2.0,
            Some("end") => x - width,
            _ => x,
        };
        Some((words, [left, y - em * 0.6, left + width, y]))
    };
    named(&document, "text").into_iter().filter_map(text_box).collect()
}

#[test]
fn no_label_covers_another_or_leaves_its_chart() {
    let others = [fixture::rich(), fixture::failing(), fixture::bare()];
    for (name, run) in all_fixtures() {
        let report = render(&[&run, &others[0], &others[1], &others[2]]).expect("a report");
        let document = parsed(text(&report, "report.html"));
        let html = text(&report, "report.html");
        for chart in named(&document, "svg") {
            let view: Vec<f64> = chart
                .attribute("viewBox")
                .expect("a view box")
                .split(' ')
                .filter_map(|side| side.parse().ok())
                .collect();
            let labels = boxes(&html[chart.range()]);
            assert!(!labels.is_empty());
            for (index, (label, [left, top, right, bottom])) in labels.iter().enumerate() {
                let inside = 0.0 <= *left && 0.0 <= *top && *right <= view[2] && *bottom <= view[3];
                assert!(inside, "{name}: {label:?} leaves the chart");
                for (other, [x0, y0, x1, y1]) in &labels[index + 1..] {
                    let apart = right <= x0 || x1 <= left || bottom <= y0 || y1 <= top;
                    assert!(apart, "{name}: {label:?} covers {other:?}");
                }
            }
        }
    }
}

#[test]
fn a_summary_fits_a_terminal() {
    for (name, run) in all_fixtures() {
        let summary = Summary { analysis: &run, colour: false }.to_string();
        for line in summary.lines() {
            assert!(unicode_width::UnicodeWidthStr::width(line) <= 80, "{name}: {line:?}");
        }
        assert!(summary.lines().count() <= 36, "{name}:\n{summary}");
        assert!(summary.chars().all(|c| c == '\n' || !c.is_control()), "{name}: no text steers the terminal");
        let coloured = Summary { analysis: &run, colour: true }.to_string();
        assert!(coloured.starts_with("\u{1b}[1"), "{name}");
    }
}

#[test]
fn gpus_under_load_are_shown_where_they_were_watched() {
    let report = rendered(&fixture::failing());
    let markdown = text(&report, "report.md");
    let (_, section) = markdown.split_once("## GPUs under load\n").expect("the section");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| 2 ")).collect();
    let expected = [
        "| 2 | together | 0000:11:00.0 | 432 W | 17.9 kJ, from power | 9.87 | 2.31 GHz | 1.09 GHz | 88 °C | Gen 4 x8 | nothing |",
        "| 2 | ddp | 0000:11:00.0 | 432 W | 17.9 kJ, counted | 9.87 | 2.31 GHz | 1.09 GHz | 88 °C | Gen 4 x8, 12 replays \
         | power cap 93.0 %, thermal slowdown by software 12.1 % |",
        "| 2 | ddp | 0000:21:00.0 | – | – | – | – | – | – | – | not known |",
    ];
    assert_eq!(rows[..3], expected);
    assert!(
        markdown.contains("| Power of all GPUs | 864 W |") && markdown.contains("| Tokens per joule of the GPUs |")
    );
    let html = parsed(text(&report, "report.html"));
    let heading = |node: &Node<'_, '_>| node.attribute("id") == Some("gpus");
    assert!(html.descendants().any(|node| heading(&node)));
    for cpu in [fixture::rich(), fixture::bare()] {
        let report = rendered(&cpu);
        for path in ["report.md", "report.html"] {
            assert!(!text(&report, path).contains("GPUs under load"), "{path}");
        }
    }
}

#[test]
fn junit_is_green_only_for_a_pass() {
    let outcomes = [
        (Outcome::Pass, None),
        (Outcome::Fail, Some(("failure", "below-target"))),
        (Outcome::Inconclusive, Some(("failure", "inconclusive"))),
        (Outcome::Fault, Some(("error", "fault"))),
        (Outcome::Hang, Some(("error", "hang"))),
        (Outcome::Interrupted, Some(("error", "interrupted"))),
    ];
    for (outcome, expected) in outcomes {
        let mut run = fixture::rich();
        run.verdict.outcome = outcome;
        let report = rendered(&run);
        let document = parsed(text(&report, "junit.xml"));
        let seen: Vec<(&str, Option<&str>)> = document
            .descendants()
            .filter(|node| ["failure", "error"].contains(&node.tag_name().name()))
            .map(|node| (node.tag_name().name(), node.attribute("type")))
            .collect();
        assert_eq!(seen, expected.map(|(tag, kind)| (tag, Some(kind))).into_iter().collect::<Vec<_>>(), "{outcome:?}");
    }
    let mut run = fixture::rich();
    run.verdict.outcome = Outcome::NotGraded;
    let report = rendered(&run);
    let document = parsed(text(&report, "junit.xml"));
    assert_eq!(named(&document, "skipped").len(), 6, "the verdict, three worlds, one skipped world, one warning");
}

#[test]
fn junit_names_each_world_finding_and_blocking_flag() {
    let report = rendered(&fixture::failing());
    insta::assert_snapshot!("junit_failing", text(&report, "junit.xml"));
    let document = parsed(text(&report, "junit.xml"));
    let suite = named(&document, "testsuite")[0];
    let count = |name: &str| suite.attribute(name).and_then(|count| count.parse::<usize>().ok()).expect("a count");
    assert_eq!(count("tests"), named(&document, "testcase").len());
    assert_eq!(count("failures"), named(&document, "failure").len());
    assert_eq!(count("errors"), named(&document, "error").len());
    assert_eq!(count("skipped"), named(&document, "skipped").len());
}

#[test]
fn titles_follow_the_grade() {
    for (run, title) in
        [(fixture::rich(), "CPU ranks: says nothing about GPUs"), (fixture::failing(), "Provisional qualification")]
    {
        let report = rendered(&run);
        for path in ["report.html", "report.md"] {
            assert!(text(&report, path).contains(title), "{path}: {title}");
        }
        let html = parsed(text(&report, "report.html"));
        assert!(named(&html, "title")[0].text().is_some_and(|text| text.contains(title)));
        assert!(
            Summary { analysis: &run, colour: false }.to_string().lines().next().is_some_and(|l| l.contains(title))
        );
    }
}

#[test]
fn pages_read_as_recorded() {
    let compared = render(&[&fixture::failing(), &fixture::rich()]).expect("a report");
    insta::assert_snapshot!("markdown_rich", text(&rendered(&fixture::rich()), "report.md"));
    insta::assert_snapshot!("markdown_compared", text(&compared, "report.md"));
    insta::assert_snapshot!("markdown_empty", text(&rendered(&fixture::empty()), "report.md"));
    for (name, run) in [("rich", fixture::rich()), ("failing", fixture::failing()), ("empty", fixture::empty())] {
        insta::assert_snapshot!(format!("summary_{name}"), Summary { analysis: &run, colour: false }.to_string());
    }
}

#[test]
fn measured_links_are_shown_as_tables_and_a_chart() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured");
    let run = fixture::rich();
    let report = |name: &str| {
        let (head, lines) = rigscale::record::read_links(&root.join(name).join("links.jsonl")).expect("links");
        render_with(&[&run], Beside { machine: None, links: Some((&head, &lines)) }).expect("a report")
    };
    let peers = report("peers-faster");
    for page in ["report.html", "report.md"] {
        let page = text(&peers, page);
        assert!(page.contains("NCCL_P2P_LEVEL=SYS") || page.contains("NCCL\\_P2P\\_LEVEL=SYS"), "{page}");
        assert!(page.contains("39.3 ±0.2 GB") && page.contains("Gen1 x16"), "at rest beside under load");
    }
    assert!(parsed(text(&peers, "charts/links.svg")).root_element().has_children());
    assert!(text(&peers, "report.html").contains("Measured before the training"));
    let bridged = report("nvlink-bridge");
    assert!(text(&bridged, "report.html").contains("NVLink"), "a bridged pair is no PCIe result");
    assert!(text(&report("false-grant"), "report.html").contains(">wrong<"), "wrong data are not hidden");
    let bare = rendered(&run);
    assert!(bare.files.iter().all(|(name, _)| name != "charts/links.svg"));
    assert!(!text(&bare, "report.html").contains("link-rates"), "nothing is said where nothing was measured");
}
