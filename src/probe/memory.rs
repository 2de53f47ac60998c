//! Memory modules as the firmware lists them: SMBIOS structures of type 17, which root may read, without serial numbers.

use std::fs;
use std::io::{ErrorKind, Read};

use crate::topology::{MemorySlot, Missing, Reading, Why};
use crate::units::Bytes;

use super::ask::garbled;

const FOLDER: &str = "/sys/firmware/dmi/entries";
/// Type of a memory device (SMBIOS 3.7, section 7.18).
const MEMORY_DEVICE: &str = "17-";
/// No machine has more places.
const SLOTS_MAX: usize = 256;
/// A structure takes about 100 bytes, and as much for its texts.
const STRUCTURE_BYTES_MAX: u64 = 4096;

/// A line for each place, in the order of the firmware.
///
/// # Errors
/// The firmware lists none, or this user may not read them.
pub(super) fn slots() -> Reading<String> {
    let unread = |error: &std::io::Error| {
        let why = match error.kind() {
            ErrorKind::NotFound => Why::Absent,
            ErrorKind::PermissionDenied => Why::Denied,
            _ => Why::Garbled,
        };
        Missing::new(why, format!("{FOLDER}/17-*/raw"))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(FOLDER).map_err(|error| unread(&error))?.flatten().take(4096) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix(MEMORY_DEVICE).and_then(|number| number.parse::<u32>().ok()) {
            let mut bytes = Vec::new();
            let file = fs::File::open(entry.path().join("raw")).map_err(|error| unread(&error))?;
            file.take(STRUCTURE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| unread(&error))?;
            found.extend(line(&bytes).map(|line| (number, line)));
        }
    }
    found.sort();
    match found.is_empty() {
        true => Err(Missing::new(Why::Absent, format!("{FOLDER}: no memory device"))),
        false => Ok(found.into_iter().take(SLOTS_MAX).map(|(_, line)| line).collect::<Vec<_>>().join("\n")),
    }
}

/// Place, channel, MiB and speed of one structure. Size at 0x0c (0x7fff: see 0x1c), texts of place and bank at 0x10 and
/// 0x11, configured speed at 0x20.
fn line(structure: &[u8]) -> Option<String> {
    let length = usize::from(*structure.get(1)?);
    let word = |at: usize| match at + 2 <= length {
        true => Some(u16::from_le_bytes([*structure.get(at)?, *structure.get(at + 1)?])),
        false => None,
    };
    let text = |at: usize| -> String {
        let number = structure.get(at).copied().filter(|_| at < length).unwrap_or(0);
        let texts = structure.get(length..).unwrap_or_default().split(|byte| *byte == 0);
        let text = texts.skip(usize::from(number).wrapping_sub(1)).map(String::from_utf8_lossy).next();
        text.filter(|_| number != 0).unwrap_or_default().replace(['|', '\n'], " ").trim().to_owned()
    };
    let mebi = match word(0x0c)? {
        0xffff => return None,
        0x7fff => u32::from(word(0x1c)?) | u32::from(word(0x1e)?) << 16,
        size if size & 0x8000 != 0 => u32::from(size & 0x7fff) / 1024,
        size => u32::from(size),
    };
    Some(format!("{}|{}|{mebi}|{}", text(0x10), text(0x11), word(0x20).unwrap_or(0)))
}

/// Reads the lines of [`slots`].
pub(super) fn parsed(text: &str) -> Reading<Vec<MemorySlot>> {
    let slot = |line: &str| -> Option<MemorySlot> {
        let parts: Vec<&str> = line.split('|').collect();
        let [slot, channel, mebi, speed] = parts.as_slice() else { return None };
        let (mebi, speed): (u64, u32) = (mebi.parse().ok()?, speed.parse().ok()?);
        Some(MemorySlot {
            slot: (*slot).to_owned(),
            channel: (*channel).to_owned(),
            bytes: (mebi != 0).then_some(Bytes(mebi.checked_mul(1 << 20)?)),
            mega_transfers: (speed != 0).then_some(speed),
        })
    };
    let wrong = |line: &str| garbled("the list of memory modules", line);
    text.lines().take(SLOTS_MAX).map(|line| slot(line).ok_or_else(|| wrong(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(size: u16, extended: u32, speed: u16) -> Vec<u8> {
        let mut bytes = vec![0; 0x28];
        (bytes[0], bytes[1], bytes[0x10], bytes[0x11]) = (17, 0x28, 1, 2);
        bytes[0x0c..0x0e].copy_from_slice(&size.to_le_bytes());
        bytes[0x1c..0x20].copy_from_slice(&extended.to_le_bytes());
        bytes[0x20..0x22].copy_from_slice(&speed.to_le_bytes());
        bytes.extend(b"DIMM_A1\0P0 CHANNEL A\0Samsung\0SERIAL\0\0");
        bytes
    }

    #[test]
    fn structures_give_place_channel_size_and_speed_and_no_serial_number() {
        let rows = [
            (structure(16384, 0, 3200), "DIMM_A1|P0 CHANNEL A|16384|3200"),
            (structure(0x7fff, 65536, 4800), "DIMM_A1|P0 CHANNEL A|65536|4800"),
            (structure(0, 0, 0), "DIMM_A1|P0 CHANNEL A|0|0"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(line(&bytes).as_deref(), Some(expected));
            assert_eq!(parsed(expected).unwrap()[0].bytes.is_none(), expected.contains("|0|"));
        }
        assert_eq!(line(&structure(0xffff, 0, 0)), None);
        for cut in 0..structure(16384, 0, 3200).len() {
            let _ = line(&structure(16384, 0, 3200)[..cut]);
        }
        assert_eq!(parsed("DIMM|x").unwrap_err().why, Why::Garbled);
    }
}
