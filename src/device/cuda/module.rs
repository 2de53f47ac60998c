//! Compiled kernels on a GPU: loading them, and launching one.

use std::ffi::{CString, c_void};
use std::fmt;
use std::rc::Rc;

use super::driver::{Gpu, Handle};
use super::error::CudaError;
use super::stream::Stream;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const DYNAMIC_SHARED: i32 = 8;
/// Dynamic shared memory that needs no permission.
const SHARED_FREE: u32 = 48 << 10;

/// One cubin, loaded.
struct Module {
    gpu: Gpu,
    handle: Handle,
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once and unloaded once, after the last `Function` in it
        let _at_exit = unsafe { (self.gpu.driver().cuModuleUnload)(self.handle) };
    }
}

/// The kernels of one file.
#[derive(Clone)]
pub(super) struct Kernels(Rc<Module>);

impl Kernels {
    /// Loads machine code.
    pub(super) fn load(gpu: &Gpu, cubin: &[u8], file: &str) -> Result<Self, CudaError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: reads an ELF image, whose length it holds itself; it was hashed when it was compiled
        let code = unsafe { (gpu.driver().cuModuleLoadData)(&raw mut handle, cubin.as_ptr().cast()) };
        gpu.driver().check(code, || format!("load the kernels of {file}"))?;
        Ok(Self(Rc::new(Module { gpu: gpu.clone(), handle })))
    }

    /// The kernel `name`.
    pub(super) fn function(&self, name: &'static str) -> Result<Function, CudaError> {
        let c_name = CString::new(name).unwrap_or_default();
        let mut handle = std::ptr::null_mut();
        let driver = self.0.gpu.driver();
        // SAFETY: reads a string, writes one handle that lives as long as its module
        let code = unsafe { (driver.cuModuleGetFunction)(&raw mut handle, self.0.handle, c_name.as_ptr()) };
        driver.check(code, || format!("find the kernel {name}"))?;
        Ok(Function { _module: self.clone(), name, handle, shared: SHARED_FREE })
    }
}

/// A kernel.
pub(super) struct Function {
    /// Keeps it loaded.
    _module: Kernels,
    name: &'static str,
    handle: Handle,
    /// Dynamic shared memory that it may use.
    shared: u32,
}

impl fmt::Debug for Function {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Function({})", self.name)
    }
}

/// How a kernel is spread: blocks, threads of each, and shared memory of each in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) grid: [usize; 3],
    pub(super) block: usize,
    pub(super) shared: usize,
}

impl Geometry {
    /// A row of blocks without dynamic shared memory.
    pub(super) fn row(blocks: usize, block: usize) -> Self {
        Self { grid: [blocks, 1, 1], block, shared: 0 }
    }
}

/// One argument of a kernel: the bytes of its value, from the lowest address on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Argument(u64);

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self(u64::from(value.cast_unsigned()))
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}

/// Sizes are `int` in kernels; a plan that needs more was refused long before.
pub(super) fn int(size: usize) -> Argument {
    Argument::from(i32::try_from(size).unwrap_or(i32::MAX))
}

impl Function {
    /// Enqueues the kernel.
    ///
    /// # Safety
    /// The arguments have the number and types of the kernel's parameters, and each address reaches as far as the kernel
    /// reads and writes with these sizes.
    pub(super) unsafe fn launch(
        &mut self,
        stream: &Stream,
        geometry: Geometry,
        arguments: &mut [Argument],
    ) -> Result<(), CudaError> {
        let Geometry { grid, block, shared } = geometry;
        if grid.contains(&0) {
            return Ok(());
        }
        let driver = stream.gpu().driver();
        let [x, y, z] = grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        if self.shared < shared {
            // SAFETY: the function lives as long as its module
            let code = unsafe { (driver.cuFuncSetAttribute)(self.handle, DYNAMIC_SHARED, shared as i32) };
            driver.check(code, || format!("give {} {shared} bytes of shared memory", self.name))?;
            self.shared = shared;
        }
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| (&raw mut argument.0).cast()).collect();
        // SAFETY: the caller vouches for the arguments; the driver copies them before it returns
        let code = unsafe {
            (driver.cuLaunchKernel)(
                self.handle,
                x,
                y,
                z,
                block as u32,
                1,
                1,
                shared,
                stream.handle(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        driver.check(code, || format!("launch {} with {geometry:?}", self.name))
    }
}
