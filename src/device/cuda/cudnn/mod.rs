//! cuDNN 9, found at run time: its graph interface, and attention through it.

mod descriptor;
mod dims;
mod graph;
mod nodes;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use super::driver::Handle;
use super::error::CudaError;
use super::library::{Wanted, functions};
use super::stream::Stream;

pub use dims::AttentionDims;
pub use graph::{AttentionGraph, AttentionTensors};

pub(super) const CUDNN: Wanted = Wanted {
    name: "cuDNN",
    file: "libcudnn.so.9",
    companions: "",
    packages: &["cudnn"],
    install: "install cuDNN 9: pip install nvidia-cudnn-cu13, or NVIDIA's package cudnn9-cuda-13; \
              without it rigscale's own attention serves",
};

/// The oldest version taken, as `cudnnGetVersion` counts (9.10.0): from here on the softmax of the attention patterns
/// takes minus infinity as the value of a masked score.
const OLDEST_VERSION: usize = 91_000;

functions! {
    /// The functions of cuDNN's graph interface that rigscale calls (`cudnn_graph.h`).
    Functions {
        fn cudnnGetVersion() -> usize;
        fn cudnnGetCudartVersion() -> usize;
        fn cudnnCreate(*mut Handle) -> c_int;
        fn cudnnDestroy(Handle) -> c_int;
        fn cudnnSetStream(Handle, Handle) -> c_int;
        fn cudnnGetErrorString(c_int) -> *const c_char;
        fn cudnnGetLastErrorString(*mut c_char, usize) -> ();
        fn cudnnBackendCreateDescriptor(c_int, *mut Handle) -> c_int;
        fn cudnnBackendDestroyDescriptor(Handle) -> c_int;
        fn cudnnBackendFinalize(Handle) -> c_int;
        fn cudnnBackendSetAttribute(Handle, c_int, c_int, i64, *const c_void) -> c_int;
        fn cudnnBackendGetAttribute(Handle, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int;
        fn cudnnBackendExecute(Handle, Handle, Handle) -> c_int;
    }
}

/// The library, loaded and checked.
#[derive(Debug)]
pub(super) struct Cudnn {
    functions: Functions,
    version: usize,
}

impl Cudnn {
    /// Loads cuDNN.
    fn load(gpu: &super::driver::Gpu) -> Result<Arc<Self>, CudaError> {
        let functions = Functions::load(CUDNN)?;
        // SAFETY: both take nothing and return a number that is compiled into the library
        let (version, built_for) = unsafe { ((functions.cudnnGetVersion)(), (functions.cudnnGetCudartVersion)()) };
        let cudnn = Self { functions, version };
        if version < OLDEST_VERSION || version / 10_000 != 9 {
            return Err(cudnn.functions.library.version_error(cudnn.shown_version(), "9.10 or a later 9").into());
        }
        gpu.serves(&cudnn.functions.library, c_int::try_from(built_for).unwrap_or(0), &cudnn.shown_version())?;
        Ok(Arc::new(cudnn))
    }

    /// `9.19.0`
    fn shown_version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// `Ok` for status 0, otherwise an error that carries the library's own words.
    fn check(&self, status: c_int, call: &'static str, what: impl FnOnce() -> String) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let attempt = format!("call {call} for {}", what());
        let text = format!("{}{}", self.meaning(status), self.last_error());
        Err(CudaError::Call { attempt, library: "cuDNN", code: status, text })
    }

    /// The name of a status, such as `CUDNN_STATUS_BAD_PARAM`.
    fn meaning(&self, status: c_int) -> String {
        // SAFETY: takes any integer and returns a string that is compiled into the library
        unsafe { CStr::from_ptr((self.functions.cudnnGetErrorString)(status)) }.to_string_lossy().into_owned()
    }

    /// `": "` and this thread's last message of cuDNN, which reading clears; empty if there is none.
    fn last_error(&self) -> String {
        let mut text = [0 as c_char; 1024];
        // SAFETY: writes at most the given number of characters, its NUL included, into `text`; the last place is kept
        // out of its reach and stays NUL
        let said = unsafe {
            (self.functions.cudnnGetLastErrorString)(text.as_mut_ptr(), text.len() - 1);
            CStr::from_ptr(text.as_ptr()).to_string_lossy()
        };
        let said: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if said.is_empty() { String::new() } else { format!(": {}", said.join("; ")) }
    }
}

/// cuDNN's state for one GPU.
pub struct CudnnHandle {
    cudnn: Arc<Cudnn>,
    raw: Handle,
}

impl fmt::Debug for CudnnHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "CudnnHandle({})", self.version())
    }
}

impl CudnnHandle {
    /// Loads cuDNN for the GPU of `stream`, whose context is current, and lets it work on that stream.
    ///
    /// # Errors
    /// cuDNN is missing, damaged, of another major version, or needs a newer driver.
    pub fn open(stream: &Stream) -> Result<Self, CudaError> {
        let cudnn = Cudnn::load(stream.gpu())?;
        let mut raw = null_mut();
        // SAFETY: writes one handle, which `Drop` destroys
        let status = unsafe { (cudnn.functions.cudnnCreate)(&raw mut raw) };
        cudnn.check(status, "cudnnCreate", || "a handle for the GPU".into())?;
        Ok(Self { cudnn, raw })
    }

    /// The library's version: `9.19.0`.
    #[must_use]
    pub fn version(&self) -> String {
        self.cudnn.shown_version()
    }

    /// Sends what this handle executes from now on to `stream`.
    fn set_stream(&mut self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live; a handle that outlives the stream gets another before it executes again
        let status = unsafe { (self.cudnn.functions.cudnnSetStream)(self.raw, stream.handle()) };
        self.cudnn.check(status, "cudnnSetStream", || "a handle".into())
    }
}

impl Drop for CudnnHandle {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once
        let _at_exit = unsafe { (self.cudnn.functions.cudnnDestroy)(self.raw) };
    }
}
