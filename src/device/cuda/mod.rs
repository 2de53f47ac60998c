//! CUDA: the driver, its libraries, and the kernels, each loaded at run time and checked first.

mod cache;
pub mod cudnn;
mod driver;
mod error;
mod gate;
pub mod kernels;
mod library;
mod memory;
mod module;
mod nccl;
mod nvrtc;
mod products;
mod stream;
mod version;

/// Where a GPU is.
pub use crate::topology::PciAddress;
pub use cache::{Cache, cache_key};
pub use driver::{Gpu, cuda_gpus, may_reach};
pub use error::{CudaError, LibraryError};
pub use gate::Gate;
pub use memory::{ALIGNMENT, Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut, Element, Pinned, padded};
pub use nccl::{Breaker, NcclComm, NcclId, NcclLibrary, NcclSettings};
pub use nvrtc::Nvrtc;
pub use products::{Addend, PRODUCT_WORKSPACE, Product, Products};
pub use stream::{Event, Events, Graph, Stream};
pub use version::{LibraryFact, library_version};
