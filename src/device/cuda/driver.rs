//! The CUDA driver: one GPU, its context, and the checks that come before any use.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::topology::PciAddress;
use crate::units::Bytes;

use super::error::CudaError;
use super::library::{Wanted, functions};

/// What the driver calls its objects: pointers that only it reads.
pub(super) type Handle = *mut c_void;

const CUDA: Wanted = Wanted {
    name: "the NVIDIA driver's CUDA library",
    file: "libcuda.so.1",
    companions: "",
    packages: &[],
    install: "install the NVIDIA driver (in a container: start it with --gpus all)",
};

functions! {
    /// The functions of `libcuda.so.1` that rigscale calls (CUDA driver API, `cuda.h` of CUDA 12 and 13).
    Driver {
        fn cuInit(u32) -> i32;
        fn cuDriverGetVersion(*mut i32) -> i32;
        fn cuGetErrorName(i32, *mut *const c_char) -> i32;
        fn cuDeviceGetCount(*mut i32) -> i32;
        fn cuDeviceGet(*mut i32, i32) -> i32;
        fn cuDeviceGetPCIBusId(*mut c_char, i32, i32) -> i32;
        fn cuDeviceGetName(*mut c_char, i32, i32) -> i32;
        fn cuDeviceGetAttribute(*mut i32, i32, i32) -> i32;
        fn cuDeviceCanAccessPeer(*mut i32, i32, i32) -> i32;
        fn cuCtxEnablePeerAccess(Handle, u32) -> i32;
        fn cuDevicePrimaryCtxRetain(*mut Handle, i32) -> i32;
        fn cuDevicePrimaryCtxRelease_v2(i32) -> i32;
        fn cuCtxSetCurrent(Handle) -> i32;
        fn cuMemGetInfo_v2(*mut usize, *mut usize) -> i32;
        fn cuMemAlloc_v2(*mut u64, usize) -> i32;
        fn cuMemFree_v2(u64) -> i32;
        fn cuMemHostAlloc(*mut *mut c_void, usize, u32) -> i32;
        fn cuMemFreeHost(*mut c_void) -> i32;
        fn cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) -> i32;
        fn cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) -> i32;
        fn cuMemcpyDtoDAsync_v2(u64, u64, usize, Handle) -> i32;
        fn cuMemcpyPeerAsync(u64, Handle, u64, Handle, usize, Handle) -> i32;
        fn cuMemsetD8Async(u64, u8, usize, Handle) -> i32;
        fn cuStreamCreateWithPriority(*mut Handle, u32, i32) -> i32;
        fn cuStreamDestroy_v2(Handle) -> i32;
        fn cuStreamSynchronize(Handle) -> i32;
        fn cuStreamWaitEvent(Handle, Handle, u32) -> i32;
        fn cuStreamBeginCapture_v2(Handle, i32) -> i32;
        fn cuStreamEndCapture(Handle, *mut Handle) -> i32;
        fn cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) -> i32;
        fn cuGraphLaunch(Handle, Handle) -> i32;
        fn cuGraphDestroy(Handle) -> i32;
        fn cuGraphExecDestroy(Handle) -> i32;
        fn cuEventCreate(*mut Handle, u32) -> i32;
        fn cuEventDestroy_v2(Handle) -> i32;
        fn cuEventRecord(Handle, Handle) -> i32;
        fn cuEventQuery(Handle) -> i32;
        fn cuEventSynchronize(Handle) -> i32;
        fn cuEventElapsedTime(*mut f32, Handle, Handle) -> i32;
        fn cuModuleLoadData(*mut Handle, *const c_void) -> i32;
        fn cuModuleUnload(Handle) -> i32;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> i32;
        fn cuFuncSetAttribute(Handle, i32, i32) -> i32;
        fn cuLaunchKernel(
            Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> i32;
    }
}

// `CUdevice_attribute` of cuda.h
const MULTIPROCESSORS: i32 = 16;
const COMPUTE_MODE: i32 = 20;
const CAPABILITY_MAJOR: i32 = 75;
const CAPABILITY_MINOR: i32 = 76;

// `CUcomputemode`
const MODE_PROHIBITED: i32 = 2;
const MODE_EXCLUSIVE_PROCESS: i32 = 3;

/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`
const PEER_ACCESS_ALREADY_ENABLED: i32 = 704;
/// `CUDA_ERROR_NO_DEVICE`
const NO_DEVICE: i32 = 100;
/// `CUDA_ERROR_DEVICE_UNAVAILABLE`: another process holds it alone.
const DEVICE_UNAVAILABLE: i32 = 46;

impl Driver {
    /// Turns a return code into a result.
    pub(super) fn check(&self, code: i32, attempt: impl FnOnce() -> String) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        Err(CudaError::Call { attempt: attempt(), library: "CUDA", code, text: self.error_name(code) })
    }

    fn error_name(&self, code: i32) -> String {
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes one pointer, to a string of the library that is never freed
        let known = unsafe { (self.cuGetErrorName)(code, &raw mut name) } == 0 && !name.is_null();
        // SAFETY: as above, and NUL-terminated by its documentation
        if known { unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned() } else { "an unknown error".into() }
    }

    fn attribute(&self, device: i32, attribute: i32) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: writes one integer
        let code = unsafe { (self.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        self.check(code, || format!("read attribute {attribute} of a GPU"))?;
        Ok(value)
    }

    fn name(&self, device: i32) -> Result<String, CudaError> {
        let mut name = [0; 128];
        // SAFETY: writes at most the length that is given, NUL included
        let code = unsafe { (self.cuDeviceGetName)(name.as_mut_ptr(), 128, device) };
        self.check(code, || "read the name of a GPU".into())?;
        Ok(text(&name))
    }

    fn address(&self, device: i32) -> Result<Option<PciAddress>, CudaError> {
        let mut name = [0; 32];
        // SAFETY: writes at most the length that is given, NUL included
        let code = unsafe { (self.cuDeviceGetPCIBusId)(name.as_mut_ptr(), 32, device) };
        self.check(code, || "read the PCI address of a GPU".into())?;
        Ok(text(&name).parse().ok())
    }

    /// Every GPU that the driver shows, by its number in this process.
    fn devices(&self) -> Result<Vec<(i32, PciAddress)>, CudaError> {
        let mut count = 0;
        // SAFETY: writes one integer
        self.check(unsafe { (self.cuDeviceGetCount)(&raw mut count) }, || "count the GPUs".into())?;
        let mut devices = Vec::new();
        for number in 0..count {
            let mut device = 0;
            // SAFETY: writes one integer
            let code = unsafe { (self.cuDeviceGet)(&raw mut device, number) };
            self.check(code, || format!("open GPU number {number}"))?;
            devices.extend(self.address(device)?.map(|address| (device, address)));
        }
        Ok(devices)
    }
}

/// The text before the first NUL.
fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|letter| *letter as u8).take_while(|letter| *letter != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The driver, loaded and initialised once in a process.
fn driver() -> Result<&'static Driver, CudaError> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    let driver = Driver::load(CUDA)?;
    // SAFETY: takes no pointer
    match unsafe { (driver.cuInit)(0) } {
        NO_DEVICE => return Err(CudaError::NoGpu),
        code => driver.check(code, || "initialise the NVIDIA driver".into())?,
    }
    Ok(DRIVER.get_or_init(|| driver))
}

/// PCI addresses of the GPUs that CUDA can use, in its order.
///
/// # Errors
/// The driver is missing or shows none.
pub fn cuda_gpus() -> Result<Vec<PciAddress>, CudaError> {
    let devices = driver()?.devices()?;
    if devices.is_empty() {
        Err(CudaError::NoGpu)
    } else {
        Ok(devices.into_iter().map(|(_, address)| address).collect())
    }
}

/// Whether CUDA lets the GPU at `from` reach the memory of the one at `to`. No context is made.
///
/// # Errors
/// The driver is missing, or shows one of them not to this process.
pub fn may_reach(from: PciAddress, to: PciAddress) -> Result<bool, CudaError> {
    let driver = driver()?;
    let devices = driver.devices()?;
    let ordinal = |wanted: PciAddress| devices.iter().find(|(_, address)| *address == wanted).map(|row| row.0);
    let (Some(one), Some(other)) = (ordinal(from), ordinal(to)) else { return Err(CudaError::NoGpu) };
    let mut granted = 0;
    // SAFETY: writes one int
    let code = unsafe { (driver.cuDeviceCanAccessPeer)(&raw mut granted, one, other) };
    driver.check(code, || format!("ask whether {from} may reach {to}"))?;
    Ok(granted != 0)
}

/// A GPU that this process uses: its context, current on the thread that opened it.
#[derive(Clone)]
pub struct Gpu(Arc<Context>);

struct Context {
    driver: &'static Driver,
    device: i32,
    context: Handle,
    address: PciAddress,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    cuda: i32,
}

// SAFETY: the driver's handles may be used from any thread (CUDA driver API, "thread safety"); calls that need the context
// to be current make it so
unsafe impl Send for Context {}
// SAFETY: as above; nothing in it changes after it was made
unsafe impl Sync for Context {}

impl fmt::Debug for Gpu {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Gpu({} at {})", self.0.name, self.0.address)
    }
}

impl Gpu {
    /// Opens the GPU at `address` and makes its context current on this thread.
    ///
    /// # Errors
    /// The driver is missing, does not show the GPU, the GPU is too old or in use by others alone.
    pub fn open(address: PciAddress) -> Result<Self, CudaError> {
        let driver = driver()?;
        let devices = driver.devices()?;
        let Some((device, _)) = devices.iter().copied().find(|(_, at)| *at == address) else {
            let shown = devices.iter().map(|(_, at)| at.to_string()).collect::<Vec<_>>().join(", ");
            return Err(if devices.is_empty() { CudaError::NoGpu } else { CudaError::Hidden { address, shown } });
        };
        let name = driver.name(device)?;
        let capability = (driver.attribute(device, CAPABILITY_MAJOR)?, driver.attribute(device, CAPABILITY_MINOR)?);
        if capability < (8, 0) {
            return Err(CudaError::Capability { name, major: capability.0, minor: capability.1 });
        }
        let mode = driver.attribute(device, COMPUTE_MODE)?;
        if mode == MODE_PROHIBITED {
            return Err(CudaError::Exclusive { name, address, mode: "prohibited" });
        }
        let mut cuda = 0;
        // SAFETY: writes one integer
        driver.check(unsafe { (driver.cuDriverGetVersion)(&raw mut cuda) }, || "read the driver's version".into())?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle, which `Context` releases
        let code = unsafe { (driver.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        if code == DEVICE_UNAVAILABLE && mode == MODE_EXCLUSIVE_PROCESS {
            return Err(CudaError::Exclusive { name, address, mode: "exclusive process" });
        }
        driver.check(code, || format!("open a context on {name} at {address}"))?;
        let context = Context {
            multiprocessors: driver.attribute(device, MULTIPROCESSORS)?.unsigned_abs() as usize,
            driver,
            device,
            context,
            address,
            name,
            capability,
            cuda,
        };
        let gpu = Self(Arc::new(context));
        gpu.make_current()?;
        Ok(gpu)
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.0.driver
    }

    /// What the driver calls its context; it lives as long as `self`.
    pub(super) fn context(&self) -> Handle {
        self.0.context
    }

    /// Makes its context current on the calling thread, where several GPUs take turns.
    ///
    /// # Errors
    /// The driver failed.
    pub fn activate(&self) -> Result<(), CudaError> {
        self.make_current()
    }

    /// Makes its context current on the calling thread.
    pub(super) fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`
        let code = unsafe { (self.0.driver.cuCtxSetCurrent)(self.0.context) };
        self.0.driver.check(code, || "make the context current".into())
    }

    /// Whether CUDA grants this GPU access to the memory of `other`. What is granted need not arrive.
    ///
    /// # Errors
    /// The driver failed.
    pub fn may_access(&self, other: &Self) -> Result<bool, CudaError> {
        let mut granted = 0;
        // SAFETY: writes one integer
        let code = unsafe { (self.driver().cuDeviceCanAccessPeer)(&raw mut granted, self.0.device, other.0.device) };
        self.driver().check(code, || format!("ask whether {} may access {}", self.address(), other.address()))?;
        Ok(granted != 0)
    }

    /// From here on, copies and kernels of this GPU reach the memory of `other` without the host.
    ///
    /// # Errors
    /// The driver refuses: the two GPUs may not, or 8 others are reached already.
    pub fn access(&self, other: &Self) -> Result<(), CudaError> {
        self.make_current()?;
        // SAFETY: both contexts live as long as `self` and `other`; flags must be 0
        let code = unsafe { (self.driver().cuCtxEnablePeerAccess)(other.0.context, 0) };
        if code == PEER_ACCESS_ALREADY_ENABLED {
            return Ok(());
        }
        self.driver().check(code, || format!("let {} access {}", self.address(), other.address()))
    }

    /// Its PCI address.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.0.address
    }

    /// Product name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its architecture as compilers name it: `sm_90`.
    #[must_use]
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.0.capability.0, self.0.capability.1)
    }

    /// Streaming multiprocessors.
    #[must_use]
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// True if libraries of CUDA 13 run on the driver; else those of CUDA 12 do.
    pub(super) fn serves_13(&self) -> bool {
        13_000 <= self.0.cuda
    }

    /// CUDA version that the driver serves: `13.0`.
    #[must_use]
    pub fn cuda_version(&self) -> String {
        cuda_version(self.0.cuda)
    }

    /// Free and total memory.
    ///
    /// # Errors
    /// The driver failed.
    pub fn memory(&self) -> Result<(Bytes, Bytes), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers
        let code = unsafe { (self.driver().cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.driver().check(code, || "read the free memory of the GPU".into())?;
        Ok((Bytes(free as u64), Bytes(total as u64)))
    }

    /// Refuses a library built for a newer CUDA major version than the driver serves: within one major version, a
    /// driver runs libraries of newer minor versions too (CUDA's minor version compatibility).
    pub(super) fn serves(
        &self,
        library: &super::library::Library,
        built_for: i32,
        version: &str,
    ) -> Result<(), CudaError> {
        if built_for / 1000 <= self.0.cuda / 1000 {
            return Ok(());
        }
        Err(CudaError::OldDriver {
            driver: self.cuda_version(),
            library: library.name(),
            version: version.into(),
            path: library.path().to_owned(),
            needed: format!("{}.0", built_for / 1000),
        })
    }
}

/// `13.0` from 13000.
pub(super) fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `Gpu::open`, and whatever lives in it holds this `Context`
        let _at_exit = unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(cuda_version(13_000), "13.0");
        assert_eq!(cuda_version(12_080), "12.8");
    }

    #[test]
    fn without_a_driver_the_error_says_what_to_install() {
        match cuda_gpus() {
            Err(error) => assert!(error.to_string().contains("NVIDIA driver"), "{error}"),
            Ok(gpus) => assert!(!gpus.is_empty()),
        }
    }
}
