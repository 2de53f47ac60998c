//! The configuration space of a PCIe function: its spelling in a capture, and what it says.
//!
//! Spelled as rows of sixteen bytes, `040: 10 00 12 00 …`; rows of zeros are left out, but for the last, which tells the
//! length: 64 bytes for anyone, 256 or 4096 for root.

use std::fmt;

use crate::topology::{Acs, Aspm, CORRECTABLE_BITS, Missing, PcieState, Reading, UNCORRECTABLE_BITS, Why};

/// All of it (PCI Express Base Specification 6.0, section 7.2.2).
pub(super) const BYTES_MAX: usize = 4096;
/// What is never hidden.
const HEADER_BYTES: usize = 64;
/// Where extended capabilities begin.
const EXTENDED: usize = 0x100;
/// Capability of every PCIe function (section 7.5.3).
const PCIE: u8 = 0x10;
/// Extended capability: advanced error reporting (section 7.8.4).
const ERROR_REPORTING: u16 = 0x0001;
/// Extended capability: device serial number (section 7.9.3).
const SERIAL_NUMBER: u16 = 0x0003;
/// Extended capability: access control services (section 7.7.11).
const ACCESS_CONTROL: u16 = 0x000d;

/// The bytes that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
}

impl fmt::Display for ConfigSpace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.bytes.chunks(16).enumerate();
        let last = self.bytes.len().div_ceil(16).saturating_sub(1);
        for (index, row) in rows.filter(|(index, row)| *index == last || row.iter().any(|byte| *byte != 0)) {
            write!(out, "{:03x}:", index * 16)?;
            for byte in row {
                write!(out, " {byte:02x}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

impl ConfigSpace {
    /// At most [`BYTES_MAX`] bytes.
    pub(super) fn new(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(BYTES_MAX);
        Self { bytes }
    }

    /// Reads rows as [`fmt::Display`] writes them, and as `lspci -xxxx` does.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        for row in text.lines().map(str::trim).filter(|row| !row.is_empty()) {
            let (at, row) = row.split_once(':')?;
            let at = usize::from_str_radix(at, 16).ok().filter(|at| *at < BYTES_MAX && bytes.len() <= *at)?;
            bytes.resize(at, 0);
            for byte in row.split_whitespace() {
                let two = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
                bytes.push(u8::from_str_radix(byte, 16).ok().filter(|_| two && bytes.len() < BYTES_MAX)?);
            }
        }
        (4 <= bytes.len()).then_some(Self { bytes })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes([*self.bytes.get(at)?, *self.bytes.get(at + 1)?]))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from(self.u16(at)?) | u32::from(self.u16(at + 2)?) << 16)
    }

    /// False where every bit reads as one: nothing drives the bus (section 2.3.2).
    fn responds(&self) -> bool {
        self.bytes.iter().take(HEADER_BYTES).any(|byte| *byte != 0xff)
    }

    /// Where a capability begins; none where the function lacks it. Every step goes to a place that was not visited.
    fn capability(&self, id: u8) -> Reading<Option<usize>> {
        if self.bytes.len() <= HEADER_BYTES {
            let seen = format!("only {} bytes of configuration space are shown", self.bytes.len());
            return Err(Missing::new(Why::Denied, seen));
        }
        // Bit 4 of the status says that there are capabilities.
        let mut at = match self.u16(6) {
            Some(status) if status & 0x10 != 0 => usize::from(self.bytes[0x34] & 0xfc),
            _ => 0,
        };
        for _ in 0..(EXTENDED - HEADER_BYTES) / 4 {
            match (at, self.bytes.get(at), self.bytes.get(at + 1)) {
                (HEADER_BYTES.., Some(found), _) if *found == id => return Ok(Some(at)),
                (HEADER_BYTES.., Some(_), Some(next)) => at = usize::from(next & 0xfc),
                _ => return Ok(None),
            }
        }
        Err(Missing::new(Why::Garbled, "the capabilities in configuration space form a ring"))
    }

    /// Where an extended capability begins; none where the function lacks it.
    fn extended(&self, id: u16) -> Reading<Option<usize>> {
        self.capability(PCIE)?;
        if self.bytes.len() <= EXTENDED {
            return Err(Missing::new(Why::Unsupported, "no extended configuration space is shown"));
        }
        let mut at = EXTENDED;
        for _ in 0..(BYTES_MAX - EXTENDED) / 8 {
            let Some(head) = self.u32(at).filter(|head| *head != 0 && *head != u32::MAX) else { return Ok(None) };
            if head as u16 == id {
                return Ok(Some(at));
            }
            at = (head >> 20) as usize & !3;
            if at < EXTENDED {
                return Ok(None);
            }
        }
        Err(Missing::new(Why::Garbled, "the extended capabilities in configuration space form a ring"))
    }

    /// Zeros in the place of the serial number.
    pub(super) fn without_serial_number(mut self) -> Self {
        if let Ok(Some(at)) = self.extended(SERIAL_NUMBER) {
            let end = (at + 12).min(self.bytes.len());
            self.bytes[(at + 4).min(end)..end].fill(0);
        }
        self
    }

    /// What the status registers of advanced error reporting remember: uncorrectable at 4, correctable at 16.
    fn errors_seen(&self) -> Reading<Vec<String>> {
        let at = self.extended(ERROR_REPORTING)?.ok_or_else(|| Missing::new(Why::Absent, "no error reporting"))?;
        let cut = || Missing::new(Why::Garbled, "error reporting is cut off");
        let (hard, soft) = (self.u32(at + 4).ok_or_else(cut)?, self.u32(at + 16).ok_or_else(cut)?);
        let set = |bits: &'static [(u32, &'static str)], status: u32| {
            bits.iter().filter(move |(bit, _)| status & 1 << bit != 0).map(|(_, name)| (*name).to_owned())
        };
        Ok(set(&UNCORRECTABLE_BITS, hard).chain(set(&CORRECTABLE_BITS, soft)).collect())
    }

    /// What it says; error counts are not among it.
    pub(super) fn state(&self) -> PcieState {
        if !self.responds() {
            let silent = Missing::new(Why::Garbled, "every bit of configuration space is set: nothing answers");
            return PcieState { responds: Ok(false), ..PcieState::unknown(&silent) };
        }
        let absent = |what: &str| Missing::new(Why::Absent, what);
        let pcie = self.capability(PCIE).and_then(|at| at.ok_or_else(|| absent("no PCIe capability")));
        // Cut in the middle of the capability: read as if nothing was shown.
        let word = |offset: usize| -> Reading<u16> {
            let at = pcie.clone()? + offset;
            self.u16(at).ok_or_else(|| Missing::new(Why::Garbled, "configuration space ends within a capability"))
        };
        // Sizes are powers of two from 128 bytes; 6 and 7 are reserved.
        let size = |code: u16| match code & 7 {
            code @ 0..=5 => Ok(128_u32 << code),
            code => Err(Missing::new(Why::Garbled, format!("size {code} of a packet is reserved"))),
        };
        let acs = self.extended(ACCESS_CONTROL).and_then(|at| {
            let at = at.ok_or_else(|| absent("no access control services"))?;
            self.u16(at + 6).ok_or_else(|| Missing::new(Why::Garbled, "access control services are cut off"))
        });
        PcieState {
            responds: Ok(true),
            aspm: word(0x10).map(|control| match control & 3 {
                0 => Aspm::Off,
                1 => Aspm::L0s,
                2 => Aspm::L1,
                _ => Aspm::L0sL1,
            }),
            max_payload_bytes: word(0x08).and_then(|control| size(control >> 5)),
            max_payload_offered_bytes: word(0x04).and_then(size),
            max_read_request_bytes: word(0x08).and_then(|control| size(control >> 12)),
            acs: acs.map(|control| Acs {
                source_validation: control & 1 != 0,
                request_redirect: control & 1 << 2 != 0,
                completion_redirect: control & 1 << 3 != 0,
                egress_control: control & 1 << 5 != 0,
            }),
            errors_seen: self.errors_seen(),
            ..PcieState::unknown(&absent("counted elsewhere"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port with a PCIe capability at 0x58 and two extended ones.
    fn port(control: u8) -> ConfigSpace {
        let mut bytes = vec![0; BYTES_MAX];
        bytes[..8].copy_from_slice(&[0x22, 0x10, 0x83, 0x14, 7, 4, 0x10, 0]);
        bytes[0x34] = 0x50;
        bytes[0x50..0x52].copy_from_slice(&[1, 0x58]);
        bytes[0x58..0x6a].copy_from_slice(&[0x10, 0, 0x42, 1, 2, 0, 0, 0, 0x30, 0x28, 0, 0, 0, 0, 0, 0, 2, 0]);
        bytes[0x100..0x10c].copy_from_slice(&[3, 0, 1, 0x2a, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[0x2a0..0x2a8].copy_from_slice(&[0x0d, 0, 1, 0, 0x5f, 0, control, 0]);
        ConfigSpace::new(bytes)
    }

    #[test]
    fn a_port_says_what_lspci_says() {
        let state = port(0x1d).state();
        assert_eq!(state.aspm, Ok(Aspm::L1));
        assert_eq!(state.max_payload_offered_bytes, Ok(512));
        assert_eq!((state.max_payload_bytes, state.max_read_request_bytes), (Ok(256), Ok(512)));
        // SrcValid+ ReqRedir+ CmpltRedir+ UpstreamFwd+, as in NVIDIA/nccl issue 2079.
        assert_eq!(state.acs.unwrap().redirects(), ["ReqRedir", "CmpltRedir"]);
        assert_eq!(port(0x11).state().acs.unwrap().redirects(), [""; 0], "SrcValid costs peers nothing");
    }

    #[test]
    fn what_is_not_shown_is_unknown_and_never_off() {
        let mut space = port(0x1d);
        space.bytes.truncate(64);
        let state = space.state();
        assert_eq!(state.responds, Ok(true));
        assert_eq!(state.acs.unwrap_err().why, Why::Denied);
        assert_eq!(state.aspm.unwrap_err().why, Why::Denied);
        let mut space = port(0x1d);
        space.bytes.truncate(256);
        assert_eq!(space.state().aspm, Ok(Aspm::L1));
        assert_eq!(space.state().acs.unwrap_err().why, Why::Unsupported);
        assert_eq!(ConfigSpace::new(vec![0xff; 64]).state().responds, Ok(false));
    }

    #[test]
    fn rows_survive_a_round_trip_and_lose_the_serial_number() {
        for space in [port(0x1d), ConfigSpace::new(vec![0; 64]), ConfigSpace::new(vec![0xff; 4096])] {
            assert_eq!(ConfigSpace::parse(&space.to_string()), Some(space));
        }
        let text = port(0x1d).without_serial_number().to_string();
        assert!(text.contains("100: 03 00 01 2a 00 00 00 00 00 00 00 00 00"), "{text}");
        for text in ["", "x", "000: 1", "000: zz", "010: 00\n000: 00", "fff0: 00", "000: 00 00 00"] {
            assert_eq!(ConfigSpace::parse(text), None, "{text}");
        }
    }

    #[test]
    fn rings_end() {
        let mut space = port(0);
        space.bytes[0x59] = 0x50;
        space.bytes[0x58] = 0x05;
        assert_eq!(space.state().aspm.unwrap_err().why, Why::Garbled);
        let mut space = port(0);
        space.bytes[0x2a0] = 0x01;
        space.bytes[0x2a2..0x2a4].copy_from_slice(&[1, 0x10]);
        assert_eq!(space.state().acs.unwrap_err().why, Why::Garbled);
    }
}
