//! The table of rules, in two parts: what is plugged in, and what runs it.

mod devices;
mod machine;

use devices::DEVICES;
use machine::MACHINE;

use super::Rule;

/// All rules, in the order in which they are printed.
pub const RULES: &[Rule] = &both();

const fn both() -> [Rule; DEVICES.len() + MACHINE.len()] {
    let mut all = [DEVICES[0]; DEVICES.len() + MACHINE.len()];
    let mut index = 0;
    while index < all.len() {
        all[index] = if index < DEVICES.len() { DEVICES[index] } else { MACHINE[index - DEVICES.len()] };
        index += 1;
    }
    all
}
