//! The PCI address: the only name that hardware has in rigscale.

use std::fmt;
use std::str::FromStr;

use super::as_text;

/// Domain, bus, device and function of a PCI device, as in `0000:41:00.0`. Domains of some storage controllers
/// need five or more hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain (segment).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Stands for a GPU of which an imported text gives the index only. No machine has this domain.
    #[must_use]
    pub fn of_index(index: u8) -> Self {
        Self { domain: u32::MAX, bus: index, device: 0, function: 0 }
    }

    /// True where the address stands for an index.
    #[must_use]
    pub fn is_index(self) -> bool {
        self.domain == u32::MAX
    }

    /// Stands for the port above this device where an imported text leaves the port out; none for a domain of more than
    /// four digits. No machine has this domain.
    #[must_use]
    pub fn port_above(self) -> Option<Self> {
        (self.domain < 0xffff).then_some(Self { domain: 0xffff_0000 | self.domain, ..self })
    }
}

/// The text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no PCI address: expected domain:bus:device.function in hexadecimal, such as 0000:41:00.0")]
pub struct NotAnAddress {
    /// What was read.
    pub text: String,
}

/// `digits` hexadecimal digits, at least `least` and at most `most` of them, as a number up to `limit`.
fn hex(digits: &str, least: usize, most: usize, limit: u32) -> Option<u32> {
    let well_formed = (least..=most).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = if well_formed { u32::from_str_radix(digits, 16).ok()? } else { return None };
    (number <= limit).then_some(number)
}

fn parse(text: &str) -> Option<PciAddress> {
    let mut parts = text.split(':');
    let (domain, bus, slot) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = slot.split_once('.')?;
    if parts.next().is_some() {
        return None;
    }
    Some(PciAddress {
        domain: hex(domain, 4, 8, u32::MAX)?,
        bus: hex(bus, 2, 2, 0xff)? as u8,
        device: hex(device, 2, 2, 31)? as u8,
        function: hex(function, 1, 1, 7)? as u8,
    })
}

impl FromStr for PciAddress {
    type Err = NotAnAddress;
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        parse(text).ok_or_else(|| NotAnAddress { text: text.to_owned() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function))
    }
}

as_text!(PciAddress, "^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\\.[0-7]$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["0000:41:00.0", "10000:e1:1f.7", "deadbeef:00:00.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:41:00.0".parse::<PciAddress>().unwrap().bus, 0x41);
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = ["", "41:00.0", "0000:41:20.0", "0000:41:00.8", "0000:041:00.0", "+000:41:00.0", "0000:41:00.0:1"];
        for text in bad.iter().chain(&["123456789:41:00.0", "0000:41:00", "0000:é1:00.0"]) {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
