//! Takes out of answers what names a person, a host or a single piece of hardware. PCI addresses stay: they name
//! places, and nothing works without them.
//! rigscale asks for no serial numbers, UUIDs of GPUs or MAC addresses in the first place; this guards what a file
//! may hold all the same.

use super::{Answer, Question, Value};

/// What stands where something was taken out.
const REDACTED: &str = "redacted";

/// Kernel parameters whose values describe the machine and no one's disks, hosts or networks. Values of all others are
/// taken out. A name that ends in `.` or `_` stands for all that begin so.
const KEPT_PARAMETERS: &[&str] = &[
    "acpi",
    "amd_iommu",
    "amd_prefcore",
    "amd_pstate",
    "clocksource",
    "default_hugepagesz",
    "hpet",
    "hugepages",
    "hugepagesz",
    "idle",
    "init_on_alloc",
    "intel_idle.",
    "intel_iommu",
    "intel_pstate",
    "iommu",
    "iommu.",
    "irqaffinity",
    "isolcpus",
    "maxcpus",
    "mem",
    "mitigations",
    "modprobe.blacklist",
    "module_blacklist",
    "nohz",
    "nohz_full",
    "nosmt",
    "nouveau.",
    "nr_cpus",
    "numa",
    "numa_balancing",
    "nvidia-drm.",
    "nvidia.",
    "nvidia_drm.",
    "pci",
    "pcie_",
    "pcie_aspm",
    "preempt",
    "processor.",
    "rcu_nocbs",
    "rcu_nocb_poll",
    "rcupdate.",
    "spectre_v2",
    "swiotlb",
    "transparent_hugepage",
    "tsc",
    "vfio-pci.",
    "vfio_iommu_type1.",
];

/// A filter for answers.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    words: Vec<String>,
}

impl Redactor {
    /// A filter that also takes out `words` (host and user names) from the kernel command line. Words of one or two
    /// letters are too likely to be something else.
    #[must_use]
    pub fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self { words: words.into_iter().map(|word| word.to_lowercase()).filter(|word| 2 < word.len()).collect() }
    }

    /// The answer without what it should not tell.
    #[must_use]
    pub fn redact(&self, question: &Question, mut answer: Answer) -> Answer {
        let command_line = matches!(question, Question::File(path) if path == "/proc/cmdline");
        if let Ok(Value::Text(text)) = &mut answer.answer {
            *text = match command_line {
                true => self.command_line(text),
                false => without_identifiers(text),
            };
        }
        if let Err(missing) = &mut answer.answer {
            missing.detail = without_identifiers(&missing.detail);
        }
        answer
    }

    /// Keeps the values of parameters that describe the machine; drops all that is not for the kernel (after `--`).
    fn command_line(&self, text: &str) -> String {
        let mut kept = Vec::new();
        for parameter in text.split_whitespace().take_while(|parameter| *parameter != "--") {
            kept.push(match parameter.split_once('=') {
                Some((name, _)) if !is_kept(name) => format!("{}={REDACTED}", self.plain(name)),
                _ => self.plain(parameter),
            });
        }
        kept.join(" ")
    }

    /// `parameter`, unless it holds an identifier or one of the words.
    fn plain(&self, parameter: &str) -> String {
        let lower = parameter.to_lowercase();
        let parts = || lower.split(|letter: char| !letter.is_alphanumeric());
        let named = self.words.iter().any(|word| lower == *word || parts().any(|part| part == word));
        if named { REDACTED.to_owned() } else { without_identifiers(parameter) }
    }
}

fn is_kept(name: &str) -> bool {
    KEPT_PARAMETERS.iter().any(|kept| match kept.ends_with(['.', '_']) {
        true => name.starts_with(kept),
        false => name == *kept,
    })
}

/// Puts [`REDACTED`] in the place of words like `(user@host)`, as kernel modules note who built them, and of
/// identifiers.
fn without_identifiers(text: &str) -> String {
    let word = |word: &str| match word.contains('@') {
        true => format!("{REDACTED}{}", &word[word.trim_end().len()..]),
        false => without_hexadecimal(word),
    };
    text.split_inclusive(char::is_whitespace).map(word).collect()
}

/// Puts [`REDACTED`] in the place of UUIDs, MAC addresses and runs of 24 and more hexadecimal digits.
fn without_hexadecimal(text: &str) -> String {
    let belongs = |letter: char| letter.is_ascii_hexdigit() || letter == '-' || letter == ':';
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '-' | ':' => 1,
            _ => rest.find(|letter| belongs(letter) != belongs(first)).unwrap_or(rest.len()),
        };
        let (run, after) = rest.split_at(len);
        clean += if is_identifier(run) { REDACTED } else { run };
        rest = after;
    }
    clean
}

fn is_identifier(run: &str) -> bool {
    let shape = |separator: char| run.split(separator).map(str::len).collect::<Vec<_>>();
    let digits = run.bytes().all(|letter| letter.is_ascii_hexdigit());
    shape('-').ends_with(&[8, 4, 4, 4, 12]) || shape(':') == [2; 6] || (digits && 24 <= run.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Phase;

    fn redacted(path: &str, text: &str) -> String {
        let answer = Answer { phase: Phase::AtRest, answer: Ok(Value::Text(text.to_owned())) };
        let redactor = Redactor::new(["Toms-Rig".to_owned(), "tom".to_owned()]);
        match redactor.redact(&Question::File(path.to_owned()), answer).answer {
            Ok(Value::Text(text)) => text,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_keeps_what_describes_the_machine() {
        let line = "BOOT_IMAGE=/vmlinuz root=UUID=78c30682-53e7-4e5e-abe9-5668fac78f99 ro iommu=pt pci=realloc=off \
                    pcie_aspm=off ip=10.0.0.7::::toms-rig:eth0 luks-78c30682-53e7-4e5e-abe9-5668fac78f99 tom quiet -- x";
        let kept = "BOOT_IMAGE=redacted root=redacted ro iommu=pt pci=realloc=off pcie_aspm=off ip=redacted \
                    luks-redacted redacted quiet";
        assert_eq!(redacted("/proc/cmdline", line), kept);
    }

    #[test]
    fn identifiers_go_and_addresses_stay() {
        let rows = [
            ("GPU-e588912b-1368-6b4f-0e2a-0d08f8afb39b", "GPU-redacted"),
            ("595.58.03  Release Build  (root@toms-rig)  \nGCC", "595.58.03  Release Build  redacted  \nGCC"),
            ("mac 00:1b:21:aa:bb:cc.", "mac redacted."),
            ("id 842559a89ed24b18fa06861618700035", "id redacted"),
            ("../devices/pci0000:40/0000:40:01.1/0000:41:00.0", "../devices/pci0000:40/0000:40:01.1/0000:41:00.0"),
            ("10000:e1:00.0 ASUSTeK ESC8000A-E13P é", "10000:e1:00.0 ASUSTeK ESC8000A-E13P é"),
            ("NVIDIA RTX PRO 6000 Blackwell 98.02.67.00.0A", "NVIDIA RTX PRO 6000 Blackwell 98.02.67.00.0A"),
        ];
        for (text, clean) in rows {
            assert_eq!(redacted("/sys/x", text), clean);
        }
    }
}
