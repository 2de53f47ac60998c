//! Questions and their answers as typed readings: what several questions about a machine share.

use crate::topology::{Generation, LinkEnd, Missing, Phase, Reading, Why, Width};

use super::{Answer, AskError, Machine, Question, Value};

/// The answer as text without white space at its ends.
pub(super) fn text(machine: &dyn Machine, question: Question) -> Result<Reading<String>, AskError> {
    let answer = machine.ask(&question)?.answer;
    Ok(answer.and_then(|value| match value {
        Value::Text(text) => Ok(text.trim().to_owned()),
        Value::Names(_) => Err(Missing::new(Why::Garbled, format!("{question} was answered with a list"))),
    }))
}

/// The text of a file without white space at its ends.
pub(super) fn file(machine: &dyn Machine, path: impl Into<String>) -> Result<Reading<String>, AskError> {
    text(machine, Question::File(path.into()))
}

/// The text of a file that names something: empty ones name nothing.
pub(super) fn name(machine: &dyn Machine, path: &str) -> Result<Reading<String>, AskError> {
    let named = |text: String| match text.is_empty() {
        true => Err(Missing::new(Why::Absent, format!("{path} is empty"))),
        false => Ok(text),
    };
    Ok(file(machine, path)?.and_then(named))
}

/// The names in a folder.
pub(super) fn folder(machine: &dyn Machine, path: &str) -> Result<Reading<Vec<String>>, AskError> {
    let answer = machine.ask(&Question::Folder(path.to_owned()))?.answer;
    Ok(answer.and_then(|value| match value {
        Value::Names(names) => Ok(names),
        Value::Text(_) => Err(Missing::new(Why::Garbled, format!("{path} was answered with a text"))),
    }))
}

/// The last part of where a link points.
pub(super) fn link_name(machine: &dyn Machine, path: String) -> Result<Reading<String>, AskError> {
    let target = text(machine, Question::Link(path))?;
    Ok(target.map(|target| target.rsplit('/').next().unwrap_or_default().to_owned()))
}

/// Reads a text as a `T`, or says what was there instead.
pub(super) fn parsed<T: std::str::FromStr>(reading: Reading<String>, what: &str) -> Reading<T> {
    reading.and_then(|text| text.parse().map_err(|_| garbled(what, &text)))
}

/// `what` said `text`, which makes no sense.
pub(super) fn garbled(what: &str, text: &str) -> Missing {
    let start: String = text.chars().take(80).collect();
    Missing::new(Why::Garbled, format!("{what} says `{start}`"))
}

/// One end of a link, as sysfs tells it for the device in `folder`.
pub(super) fn link_end(machine: &dyn Machine, folder: &str) -> Result<LinkEnd, AskError> {
    let speed = |name: &str| -> Result<(Reading<Generation>, Phase), AskError> {
        let path = format!("{folder}/{name}");
        let Answer { phase, .. } = machine.ask(&Question::File(path.clone()))?;
        Ok((file(machine, path.as_str())?.and_then(|text| generation(&path, &text)), phase))
    };
    let width = |name: &str| -> Result<Reading<Width>, AskError> {
        let path = format!("{folder}/{name}");
        Ok(file(machine, path.as_str())?.and_then(|text| lanes(&path, &text)))
    };
    let (gen_now, phase) = speed("current_link_speed")?;
    Ok(LinkEnd {
        gen_now,
        phase,
        width_now: width("current_link_width")?,
        gen_max: speed("max_link_speed")?.0,
        width_max: width("max_link_width")?,
    })
}

/// `16.0 GT/s PCIe`, of older kernels `8 GT/s`, or `Unknown` where the device has no link or sleeps.
fn generation(path: &str, text: &str) -> Reading<Generation> {
    if text.starts_with("Unknown") {
        return Err(Missing::new(Why::Unsupported, format!("{path} says `{text}`")));
    }
    Generation::from_sysfs(text).ok_or_else(|| garbled(path, text))
}

/// A number of lanes; 0 and 255 stand for no link (`PCIE_LNK_WIDTH_UNKNOWN` of the kernel), 63 for a device that
/// does not answer.
fn lanes(path: &str, text: &str) -> Reading<Width> {
    match text.parse() {
        Ok(0 | 255) => Err(Missing::new(Why::Unsupported, format!("{path} says {text}: no link"))),
        Ok(lanes) => Width::new(lanes).ok_or_else(|| garbled(path, text)),
        Err(_) => Err(garbled(path, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_and_widths_read_in_every_spelling() {
        assert_eq!(generation("", "32.0 GT/s PCIe"), Generation::try_from(5).map_err(|_| unreachable!()));
        assert_eq!(generation("", "8 GT/s"), Generation::try_from(3).map_err(|_| unreachable!()));
        assert_eq!(generation("", "Unknown speed").unwrap_err().why, Why::Unsupported);
        assert_eq!(generation("", "fast").unwrap_err().why, Why::Garbled);
        assert_eq!(lanes("", "16"), Width::try_from(16).map_err(|_| unreachable!()));
        assert_eq!(lanes("", "0").unwrap_err().why, Why::Unsupported);
        assert_eq!(lanes("", "63").unwrap_err().why, Why::Garbled);
        assert_eq!(lanes("", "-1").unwrap_err().why, Why::Garbled);
    }
}
