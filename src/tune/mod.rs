//! Finds settings of NCCL and of the buckets that shorten the real training step, and says how sure that is.
//! Knows the space, the order of search, when a difference is above noise, and how NCCL reads its settings; hides races
//! and coordinates.
//! Never launches anything itself, never offers LL128 over PCIe, and never calls a difference a gain that a second
//! look on fresh launches did not confirm.

mod answer;
mod conf;
mod confirm;
mod forms;
mod landscape;
mod ledger;
mod need;
mod outlook;
mod race;
mod search;
mod simulated;
mod space;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Binding, answer, topology_hash};
pub use conf::{Line as ConfLine, parse_conf, write_conf};
pub use forms::nccl_variables;
pub use landscape::{Landscape, Pool};
pub use ledger::Ledger;
pub use need::{Alone, need};
pub use outlook::Outlook;
pub use search::{Ask, Confirmed, Ended, Found, Limits, Outcome, Site, search};
pub use simulated::{Case, Simulated, canonical, rounded};
pub use space::{Applied, Host, KNOBS, Knob, Scope, Space, UnknownSetting, apply};
