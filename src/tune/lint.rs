//! LL128 that the user forces over PCIe, wherever NCCL would take it from.

use crate::record::{Finding, Severity};

/// A place from which NCCL takes variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called: `the environment`, `/etc/nccl.conf`.
    pub name: String,
    /// What it sets.
    pub settings: Vec<(String, String)>,
}

/// A finding for each source that makes NCCL take LL128. Sources come in the order in which NCCL asks them, so that of
/// `NCCL_PROTO` the first counts.
#[must_use]
pub fn ll128_sources(sources: &[Source]) -> Option<Finding> {
    let protocol = |source: &Source| source.settings.iter().find(|(name, _)| name == "NCCL_PROTO").cloned();
    let (source, (_, value)) = sources.iter().find_map(|source| Some((source, protocol(source)?)))?;
    forces_ll128(&value).then(|| Finding {
        code: "nccl-ll128-forced".into(),
        severity: Severity::Warning,
        addresses: Vec::new(),
        seen: format!("{} sets NCCL_PROTO={value}", source.name),
        expected: "NCCL's own choice, which never takes LL128 over PCIe (NCCL documentation, NCCL_PROTO)".into(),
        remedy: format!("Take NCCL_PROTO out of {}: over PCIe the result of LL128 may be wrong.", source.name),
    })
}

/// Whether a value of `NCCL_PROTO` allows LL128: a list that begins with `^` names what is not allowed; since 2.24 a list
/// for each function may follow, `ring;allreduce:^ll`.
fn forces_ll128(value: &str) -> bool {
    value.split(';').any(|part| {
        let list = part.split_once(':').map_or(part, |(_, list)| list).trim();
        let named = |list: &str| list.split(',').any(|one| one.trim().eq_ignore_ascii_case("ll128"));
        match list.strip_prefix('^') {
            Some(without) => !without.trim().is_empty() && !named(without),
            None => named(list),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_allows_ll128_is_found() {
        let rows = [
            ("LL128", true),
            ("LL,LL128,Simple", true),
            ("ll128", true),
            ("Simple;allreduce:LL128", true),
            ("^LL", true),
            ("^LL128", false),
            ("^LL,LL128", false),
            ("Simple", false),
            ("LL", false),
            ("", false),
        ];
        for (value, forced) in rows {
            assert_eq!(forces_ll128(value), forced, "{value}");
        }
    }

    #[test]
    fn the_first_source_counts_as_it_does_for_nccl() {
        let source = |name: &str, value: &str| Source {
            name: name.into(),
            settings: vec![("NCCL_DEBUG".into(), "WARN".into()), ("NCCL_PROTO".into(), value.into())],
        };
        assert_eq!(ll128_sources(&[source("the environment", "Simple"), source("/etc/nccl.conf", "LL128")]), None);
        let found = ll128_sources(&[source("~/.nccl.conf", "LL128"), source("/etc/nccl.conf", "Simple")]).unwrap();
        assert!(found.seen.contains("~/.nccl.conf") && found.severity == Severity::Warning);
        assert_eq!(ll128_sources(&[]), None);
    }
}
