//! A gate that holds streams back until the host opens it, so that what is measured begins everywhere at once.

use super::driver::Gpu;
use super::error::CudaError;
use super::memory::Pinned;

/// One word of host memory that kernels look at ([`LinkKernels::hold`](super::kernels::LinkKernels::hold)).
#[derive(Debug)]
pub struct Gate(Pinned<u32>);

impl Gate {
    /// A closed gate, which every GPU of the process can see.
    ///
    /// # Errors
    /// The system has no memory that may stay in place.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        Pinned::zeros(gpu, 1).map(Self)
    }

    /// Holds back whoever comes.
    pub fn close(&mut self) {
        self.write(0);
    }

    /// Lets all pass.
    pub fn open(&mut self) {
        self.write(1);
    }

    fn write(&mut self, word: u32) {
        // SAFETY: one aligned word that is owned; volatile, as GPUs read it meanwhile
        unsafe { std::ptr::write_volatile(self.0.get_mut().as_mut_ptr(), word) };
    }

    pub(super) fn address(&self) -> u64 {
        self.0.address() as u64
    }
}
