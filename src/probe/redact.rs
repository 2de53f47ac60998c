//! Takes out of answers what names a person, a host or a single piece of hardware. PCI addresses stay: they name
//! places, and nothing works without them.
//! rigscale asks for no serial numbers, UUIDs of GPUs or MAC addresses in the first place; this guards what a file
//! may hold all the same.

use super::config::ConfigSpace;
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

/// Names of hosts and users that point at nobody, and that answers need: taken out, an Ubuntu would lose its name.
const COMMON_NAMES: &[&str] = &[
    "admin",
    "amd",
    "amdgpu",
    "bus",
    "centos",
    "cpu",
    "cuda",
    "debian",
    "devices",
    "drivers",
    "fedora",
    "gpu",
    "host",
    "intel",
    "kernel",
    "linux",
    "localhost",
    "node",
    "none",
    "nvidia",
    "pci",
    "root",
    "server",
    "ubuntu",
    "user",
    "workstation",
];

/// A filter for answers.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    words: Vec<String>,
}

impl Redactor {
    /// A filter that also takes out `words` (host and user names) wherever they stand alone, in upper or lower case.
    /// Of a host with a domain, the name without it goes too. Words of one or two letters or without any are too
    /// likely to be something else, and names like `ubuntu` or `node1` point at nobody.
    #[must_use]
    pub fn new(words: impl IntoIterator<Item = String>) -> Self {
        let lower = words.into_iter().map(|word| word.to_ascii_lowercase());
        let with_host = |word: String| {
            let host = word.split_once('.').map(|(host, _)| host.to_owned());
            [Some(word), host].into_iter().flatten()
        };
        let mut words: Vec<String> = lower.flat_map(with_host).filter(|word| is_private(word)).collect();
        // a longer one first, as it may hold a shorter one
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        Self { words }
    }

    /// The answer without what it should not tell.
    #[must_use]
    pub fn redact(&self, question: &Question, mut answer: Answer) -> Answer {
        let command_line = matches!(question, Question::File(path) if path == "/proc/cmdline");
        match &mut answer.answer {
            // Rows of numbers, of which some look like a name; the serial number is the one that counts.
            Ok(Value::Text(text)) if matches!(question, Question::Config(_)) => {
                let space = ConfigSpace::parse(text).map(ConfigSpace::without_serial_number);
                *text = space.map_or_else(|| REDACTED.to_owned(), |space| space.to_string());
            }
            Ok(Value::Text(text)) if command_line => *text = self.command_line(text),
            Ok(Value::Text(text)) => *text = self.clean(text),
            Ok(Value::Names(names)) => names.iter_mut().for_each(|name| *name = self.clean(name)),
            Err(missing) => missing.detail = self.clean(&missing.detail),
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
        let clean = self.without_words(parameter);
        if clean == parameter { without_identifiers(parameter) } else { REDACTED.to_owned() }
    }

    fn clean(&self, text: &str) -> String {
        self.without_words(&without_identifiers(text))
    }

    /// Puts [`REDACTED`] in the place of each of the words where no letter or digit touches it.
    fn without_words(&self, text: &str) -> String {
        let without = |text: String, word: &String| {
            let lower = text.to_ascii_lowercase();
            let mut clean = String::with_capacity(text.len());
            let mut done = 0;
            for (start, found) in lower.match_indices(word.as_str()) {
                let end = start + found.len();
                let touched =
                    text[..start].ends_with(char::is_alphanumeric) || text[end..].starts_with(char::is_alphanumeric);
                if !touched {
                    clean += &text[done..start];
                    clean += REDACTED;
                    done = end;
                }
            }
            clean + &text[done..]
        };
        self.words.iter().fold(text.to_owned(), without)
    }
}

/// False for words that say nothing about anyone, and for names that the kernel itself gives: `node1`, `cpu12`.
fn is_private(word: &str) -> bool {
    let base = word.trim_end_matches(|letter: char| letter.is_ascii_digit());
    2 < word.len() && word.contains(char::is_alphabetic) && !COMMON_NAMES.contains(&base)
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
    use crate::topology::{Missing, Phase, Why};

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
    fn configuration_space_loses_its_serial_number_and_nothing_else() {
        let head = "000: de 10 84 26 07 04 10 00 00 00 00 00 00 00 00 00\n030: 00 00 00 00 60";
        let tail = "060: 10 00 02\n100: 03 00 01 00";
        let rows = |serial: &str| format!("{head}\n{tail} {serial} 00 00 00 00\nff0:{}\n", " 00".repeat(16));
        let question = Question::Config("0000:41:00.0".parse().unwrap());
        let redactor = Redactor::new(["dead".to_owned(), "ff0".to_owned()]);
        let clean = |text: String| {
            let answer = Answer { phase: Phase::AtRest, answer: Ok(Value::Text(text)) };
            match redactor.redact(&question, answer).answer {
                Ok(Value::Text(text)) => ConfigSpace::parse(&text),
                other => unreachable!("{other:?}"),
            }
        };
        let expected = ConfigSpace::parse(&rows("00 00 00 00 00 00 00 00"));
        assert!(expected.is_some());
        assert_eq!(clean(rows("de ad be ef 01 02 03 04")), expected);
        assert_eq!(clean("whatever it is".to_owned()), None);
    }

    #[test]
    fn names_of_hosts_and_users_go_wherever_they_stand_alone() {
        let names = ["Toms-Rig.example.org", "tom", "ubuntu", "node1", "ab", "128", "root"].map(str::to_owned);
        let redactor = Redactor::new(names);
        let clean = |answer| {
            let answer = Answer { phase: Phase::AtRest, answer };
            redactor.redact(&Question::Folder("/sys/x".to_owned()), answer).answer
        };
        let rows = [
            ("TOMS-RIG", "redacted"),
            ("toms-rig:eth0 on toms-rig.example.org", "redacted:eth0 on redacted"),
            ("/home/tom/x tom_1 TOM.", "/home/redacted/x redacted_1 redacted."),
            ("Tomcat, atom, ätom, tom7", "Tomcat, atom, ätom, tom7"),
            ("Ubuntu 24.04 ab 128 /root node1", "Ubuntu 24.04 ab 128 /root node1"),
        ];
        for (text, expected) in rows {
            assert_eq!(clean(Ok(Value::Text(text.to_owned()))), Ok(Value::Text(expected.to_owned())));
            let detail = Missing::new(Why::Absent, text);
            assert_eq!(clean(Err(detail)), Err(Missing::new(Why::Absent, expected)));
        }
        let names = ["node1", "tom", "0000:41:00.0"].map(str::to_owned).to_vec();
        let expected = ["node1", "redacted", "0000:41:00.0"].map(str::to_owned).to_vec();
        assert_eq!(clean(Ok(Value::Names(names))), Ok(Value::Names(expected)));
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
