//! Why a GPU's clocks are held below what they could be.

use std::ops::{BitAnd, BitOr, BitOrAssign};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reasons in force at once, as NVML's set of bits (nvml.h, `nvmlClocksEventReasons`, which older versions call
/// throttle reasons). Bits that a newer driver adds are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ThrottleReasons(pub u64);

/// Each bit that has a name, ascending.
const NAMES: [(ThrottleReasons, &str); 9] = [
    (ThrottleReasons::IDLE, "idle"),
    (ThrottleReasons::CLOCK_SETTING, "application clock setting"),
    (ThrottleReasons::POWER_CAP, "power cap"),
    (ThrottleReasons::HARDWARE_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::SYNC_BOOST, "sync boost"),
    (ThrottleReasons::THERMAL, "thermal slowdown by software"),
    (ThrottleReasons::HARDWARE_THERMAL, "thermal slowdown by hardware"),
    (ThrottleReasons::POWER_BRAKE, "power brake"),
    (ThrottleReasons::DISPLAY_CLOCK, "display clock setting"),
];

impl ThrottleReasons {
    /// Nothing holds the clocks.
    pub const NONE: Self = Self(0);
    /// Nothing runs.
    pub const IDLE: Self = Self(0x1);
    /// Somebody set the application clocks.
    pub const CLOCK_SETTING: Self = Self(0x2);
    /// The power limit is reached.
    pub const POWER_CAP: Self = Self(0x4);
    /// The card halves its clocks or worse: heat, a power brake, or a draw beyond the fast trigger. Also seen for a
    /// moment when clocks change.
    pub const HARDWARE_SLOWDOWN: Self = Self(0x8);
    /// Another GPU of its sync-boost group is held.
    pub const SYNC_BOOST: Self = Self(0x10);
    /// GPU or memory is above its highest operating temperature.
    pub const THERMAL: Self = Self(0x20);
    /// So hot that the card halves its clocks or worse.
    pub const HARDWARE_THERMAL: Self = Self(0x40);
    /// Something outside, such as the power supply, asks the card to draw less.
    pub const POWER_BRAKE: Self = Self(0x80);
    /// The display's clocks hold.
    pub const DISPLAY_CLOCK: Self = Self(0x100);

    /// What somebody chose, or the absence of work.
    const HARMLESS: Self = Self(Self::IDLE.0 | Self::CLOCK_SETTING.0 | Self::DISPLAY_CLOCK.0);

    /// What a machine in order does not show under load: heat, and hardware that protects itself.
    const SLOWDOWN: Self =
        Self(Self::HARDWARE_SLOWDOWN.0 | Self::THERMAL.0 | Self::HARDWARE_THERMAL.0 | Self::POWER_BRAKE.0);

    /// The reasons that cost speed: all but idleness and chosen clocks. What has no name yet may cost some.
    #[must_use]
    pub fn costly(self) -> Self {
        Self(self.0 & !Self::HARMLESS.0)
    }

    /// The reasons of heat and of hardware that protects itself; a mere power cap is none.
    #[must_use]
    pub fn slowdown(self) -> Self {
        self & Self::SLOWDOWN
    }

    /// True if no reason is in force.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The reasons one by one, lowest bit first.
    pub fn each(self) -> impl Iterator<Item = Self> {
        (0..u64::BITS).map(|bit| Self(1 << bit)).filter(move |reason| !(self & *reason).is_none())
    }

    /// What people call each reason, lowest bit first; a bit without a name by its number, `reason 0x200`.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let name = |reason: Self| {
            let known = NAMES.iter().find(|(known, _)| *known == reason);
            known.map_or_else(|| format!("reason {:#x}", reason.0), |(_, name)| (*name).to_owned())
        };
        self.each().map(name).collect()
    }
}

impl BitAnd for ThrottleReasons {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for ThrottleReasons {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ThrottleReasons {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_reasons_at_once_are_each_named() {
        let both = ThrottleReasons::POWER_CAP | ThrottleReasons::HARDWARE_THERMAL | ThrottleReasons(0x200);
        assert_eq!(both.names(), ["power cap", "thermal slowdown by hardware", "reason 0x200"]);
        assert!(ThrottleReasons::NONE.names().is_empty() && ThrottleReasons::NONE.is_none());
    }

    #[test]
    fn idleness_and_chosen_clocks_cost_nothing_and_a_power_cap_is_no_slowdown() {
        let harmless = ThrottleReasons::IDLE | ThrottleReasons::CLOCK_SETTING | ThrottleReasons::DISPLAY_CLOCK;
        assert!(harmless.costly().is_none() && harmless.slowdown().is_none());
        assert_eq!(ThrottleReasons::POWER_CAP.costly(), ThrottleReasons::POWER_CAP);
        assert!(ThrottleReasons::POWER_CAP.slowdown().is_none());
        assert_eq!(ThrottleReasons(0x200).costly(), ThrottleReasons(0x200));
        let hot = ThrottleReasons::THERMAL | ThrottleReasons::POWER_CAP;
        assert_eq!(hot.slowdown(), ThrottleReasons::THERMAL);
    }
}
