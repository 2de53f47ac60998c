//! Predicts what data-parallel training reaches on a machine, and what a change would bring, before anything is moved.
//! Knows how bytes flow through links, sockets and host memory, and how NCCL chooses; hides the event queue and the
//! order in which rings are filled.
//! Never touches hardware, never reads a clock, and never states a number without an interval.

mod board;
mod calibration;
mod card;
mod catalogue;
mod cpu;
mod edit;
mod error;
mod explain;
pub mod flow;
mod forecast;
mod hazard;
mod machine;
mod nccl;
mod platform;
mod quantity;
mod ring;
mod simulate;
mod solo;
mod step;

pub use board::{Across, Board, Bridged, Link, Node, NodeKind, Seat, copy_rate, nccl_link};
pub use calibration::{Calibration, Chosen, Constant};
pub use card::{Card, card, card_called, cards};
pub use catalogue::{platform, platform_names};
pub use cpu::CpuGeneration;
pub use edit::edit;
pub use error::PredictError;
pub use explain::{Cause, Explanation, Part, Side, explain};
pub use forecast::{Alone, Forecast, Training, efficiency, forecast, phases};
pub use hazard::{Hazard, hazards};
pub use machine::{StandIn, from_topology, from_topology_with};
pub use nccl::{NcclVersion, Protocol, RingGraph, RingProblem, Transport, ring_latency};
pub use platform::{PLATFORM_SCHEMA, Verified, parse_platform};
pub use quantity::{duration, rate};
pub use ring::{Exchange, Network, P2p, Ring, ring};
pub use simulate::{LAUNCHES, RANKS_MAX, Simulation};
pub use solo::Solo;
pub use step::{BucketWork, Framework, Overlap, StepTime, Work};
