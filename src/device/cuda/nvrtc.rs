//! NVRTC: CUDA C++ to machine code of one architecture. It needs no GPU.

use std::ffi::{CStr, CString, c_char};

use super::driver::{Gpu, Handle};
use super::error::CudaError;
use super::library::{Wanted, functions};

const NVRTC: Wanted = Wanted {
    name: "NVRTC",
    file: "libnvrtc.so.13",
    companions: "libnvrtc-builtins.so",
    packages: &["cu13", "cuda_nvrtc"],
    install: "install CUDA 13's NVRTC: pip install nvidia-cuda-nvrtc, or Debian's and NVIDIA's cuda-nvrtc-13-0",
};

/// The same, for a driver that does not serve CUDA 13 yet.
const NVRTC_12: Wanted = Wanted { file: "libnvrtc.so.12", packages: &["cuda_nvrtc"], ..NVRTC };

functions! {
    /// The functions of NVRTC that rigscale calls (`nvrtc.h`).
    Functions {
        fn nvrtcVersion(*mut i32, *mut i32) -> i32;
        fn nvrtcGetErrorString(i32) -> *const c_char;
        fn nvrtcCreateProgram(
            *mut Handle, *const c_char, *const c_char, i32, *const *const c_char, *const *const c_char
        ) -> i32;
        fn nvrtcCompileProgram(Handle, i32, *const *const c_char) -> i32;
        fn nvrtcDestroyProgram(*mut Handle) -> i32;
        fn nvrtcGetCUBINSize(Handle, *mut usize) -> i32;
        fn nvrtcGetCUBIN(Handle, *mut c_char) -> i32;
        fn nvrtcGetProgramLogSize(Handle, *mut usize) -> i32;
        fn nvrtcGetProgramLog(Handle, *mut c_char) -> i32;
    }
}

/// The compiler, loaded.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    version: (i32, i32),
}

/// A program as NVRTC holds it.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: Handle,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once
        let _at_exit = unsafe { (self.nvrtc.functions.nvrtcDestroyProgram)(&raw mut self.handle) };
    }
}

impl Nvrtc {
    /// Loads the NVRTC whose machine code the driver of `gpu` takes: that of CUDA 13, or of 12 for an older driver.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn for_gpu(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::of(if gpu.serves_13() { NVRTC } else { NVRTC_12 })
    }

    /// Loads NVRTC 13, to compile only.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn load() -> Result<Self, CudaError> {
        Self::of(NVRTC)
    }

    fn of(wanted: Wanted) -> Result<Self, CudaError> {
        let functions = Functions::load(wanted)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers
        let code = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        let nvrtc = Self { functions, version: (major, minor) };
        nvrtc.check(code, || "read NVRTC's version".into())?;
        Ok(nvrtc)
    }

    /// Its version: `13.0`.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    fn check(&self, code: i32, attempt: impl FnOnce() -> String) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: returns a string of the library that is never freed, also for codes that it does not know
        let text = unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(code)) }.to_string_lossy();
        Err(CudaError::Call { attempt: attempt(), library: "NVRTC", code, text: text.into_owned() })
    }

    /// Compiles `source`, called `file` in messages, for `architecture` (`sm_90`) with `NAME=VALUE` definitions.
    ///
    /// # Errors
    /// The source is wrong, or NVRTC does not know the architecture: with its log.
    pub fn compile(
        &self,
        file: &str,
        source: &str,
        architecture: &str,
        definitions: &[(&str, usize)],
    ) -> Result<Vec<u8>, CudaError> {
        let c_string = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let mut options = vec![c_string(&format!("--gpu-architecture={architecture}")), c_string("--std=c++17")];
        options.extend(definitions.iter().map(|(name, value)| c_string(&format!("-D{name}={value}"))));
        let (name, text) = (c_string(file), c_string(source));
        let mut program = Program { nvrtc: self, handle: std::ptr::null_mut() };
        let none = std::ptr::null();
        // SAFETY: reads two strings that outlive the call, writes one handle that `Program` destroys
        let code = unsafe {
            (self.functions.nvrtcCreateProgram)(&raw mut program.handle, text.as_ptr(), name.as_ptr(), 0, none, none)
        };
        self.check(code, || format!("begin to compile {file}"))?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: reads as many strings as it is told, which outlive the call
        let code =
            unsafe { (self.functions.nvrtcCompileProgram)(program.handle, pointers.len() as i32, pointers.as_ptr()) };
        if code != 0 {
            let (file, architecture) = (file.to_owned(), architecture.to_owned());
            return Err(CudaError::Compile { file, architecture, log: self.log(&program) });
        }
        self.cubin(&program, file)
    }

    fn cubin(&self, program: &Program<'_>, file: &str) -> Result<Vec<u8>, CudaError> {
        let mut bytes = 0;
        // SAFETY: writes one integer
        let code = unsafe { (self.functions.nvrtcGetCUBINSize)(program.handle, &raw mut bytes) };
        self.check(code, || format!("read the size of {file}, compiled"))?;
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: writes exactly the size that it told
        let code = unsafe { (self.functions.nvrtcGetCUBIN)(program.handle, cubin.as_mut_ptr().cast()) };
        self.check(code, || format!("read {file}, compiled"))?;
        Ok(cubin)
    }

    fn log(&self, program: &Program<'_>) -> String {
        let mut bytes = 0;
        // SAFETY: writes one integer
        if unsafe { (self.functions.nvrtcGetProgramLogSize)(program.handle, &raw mut bytes) } != 0 {
            return "no log".into();
        }
        let mut log = vec![0_u8; bytes];
        // SAFETY: writes exactly the size that it told
        if unsafe { (self.functions.nvrtcGetProgramLog)(program.handle, log.as_mut_ptr().cast()) } != 0 {
            return "no log".into();
        }
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned()
    }
}
