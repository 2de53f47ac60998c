//! What a PCIe function tells beyond its link: power saving, redirection, packet sizes, errors.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

use super::{Fact, Missing, Reading};

/// What configuration space and the kernel's error counters tell about one PCIe function (PCI Express Base
/// Specification 6.0, sections 7.5.3, 7.7.7 and 7.8.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PcieState {
    /// False when every bit reads as one: nothing answers at this address any more.
    #[serde(with = "Fact::<bool>")]
    pub responds: Reading<bool>,
    /// Which power saving of its link is switched on.
    #[serde(with = "Fact::<Aspm>")]
    pub aspm: Reading<Aspm>,
    /// The most data that it puts into one packet, in bytes (MaxPayload).
    #[serde(with = "Fact::<u32>")]
    pub max_payload_bytes: Reading<u32>,
    /// The most data in one packet that it can take, in bytes.
    #[serde(with = "Fact::<u32>")]
    pub max_payload_offered_bytes: Reading<u32>,
    /// The most data that it asks for at once, in bytes (MaxReadReq).
    #[serde(with = "Fact::<u32>")]
    pub max_read_request_bytes: Reading<u32>,
    /// What it does to packets between devices below it; absent where it has no access control services and so cannot
    /// redirect.
    #[serde(with = "Fact::<Acs>")]
    pub acs: Reading<Acs>,
    /// Errors that its status registers remember since they were last cleared, as `lspci` names them (AER): of those
    /// that speak of the link or of lost packets. An unsupported request is none of them: looking for devices causes it.
    #[serde(default = "not_asked", skip_serializing_if = "was_not_asked", with = "Fact::<Vec<String>>")]
    pub errors_seen: Reading<Vec<String>>,
    /// Errors that the link mended, since the machine started.
    #[serde(with = "Fact::<u64>")]
    pub correctable_errors: Reading<u64>,
    /// Errors that cost a packet.
    #[serde(with = "Fact::<u64>")]
    pub nonfatal_errors: Reading<u64>,
    /// Errors that cost the link.
    #[serde(with = "Fact::<u64>")]
    pub fatal_errors: Reading<u64>,
}

impl PcieState {
    /// Of a file that is older than the questions.
    #[must_use]
    pub fn not_asked() -> Self {
        Self::unknown(&Missing::not_asked())
    }

    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: &Missing) -> Self {
        Self {
            responds: Err(why.clone()),
            aspm: Err(why.clone()),
            max_payload_bytes: Err(why.clone()),
            max_payload_offered_bytes: Err(why.clone()),
            max_read_request_bytes: Err(why.clone()),
            acs: Err(why.clone()),
            errors_seen: Err(why.clone()),
            correctable_errors: Err(why.clone()),
            nonfatal_errors: Err(why.clone()),
            fatal_errors: Err(why.clone()),
        }
    }
}

fn not_asked<T>() -> Reading<T> {
    Err(Missing::not_asked())
}

fn was_not_asked<T>(reading: &Reading<T>) -> bool {
    reading.as_ref().is_err_and(|missing| *missing == Missing::not_asked())
}

/// The bits of the AER status registers that [`PcieState::errors_seen`] names: the bit, and the word of `lspci`
/// (section 7.8.4.2, uncorrectable; 7.8.4.5, correctable).
pub const UNCORRECTABLE_BITS: [(u32, &str); 6] =
    [(4, "DLP"), (5, "SDES"), (13, "FCP"), (14, "CmpltTO"), (17, "RxOF"), (18, "MalfTLP")];
/// As [`UNCORRECTABLE_BITS`], of the register of correctable errors.
pub const CORRECTABLE_BITS: [(u32, &str); 5] =
    [(0, "RxErr"), (6, "BadTLP"), (7, "BadDLLP"), (8, "Rollover"), (12, "Timeout")];

/// Active state power management of a link: what is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aspm {
    /// The link stays awake.
    Off,
    /// It naps in the direction that is silent.
    L0s,
    /// It sleeps when both directions are silent.
    L1,
    /// It does both.
    L0sL1,
}

impl fmt::Display for Aspm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Off => "off",
            Self::L0s => "L0s",
            Self::L1 => "L1",
            Self::L0sL1 => "L0s and L1",
        })
    }
}

/// Access control services of a port: what it does to packets between devices below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acs {
    /// It drops packets whose sender is none of the devices below it. That costs peers nothing.
    pub source_validation: bool,
    /// It sends requests of one device to another up to the root complex.
    pub request_redirect: bool,
    /// It sends answers of one device to another up to the root complex.
    pub completion_redirect: bool,
    /// It decides by a table which device may reach which.
    pub egress_control: bool,
}

impl Acs {
    /// The bits that keep packets from the direct way between peers, as `lspci` names them. `SrcValid` is none of them.
    #[must_use]
    pub fn redirects(self) -> Vec<&'static str> {
        let bits = [
            (self.request_redirect, "ReqRedir"),
            (self.completion_redirect, "CmpltRedir"),
            (self.egress_control, "EgressCtrl"),
        ];
        bits.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
    }
}

/// A window of a PCI function into its memory: one of its base address registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// Which region, 0 to 5: 1 on Ada, 2 on Blackwell.
    pub region: u8,
    /// Its size.
    pub bytes: Bytes,
}
