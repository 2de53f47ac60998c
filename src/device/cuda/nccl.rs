//! NCCL: one communicator of one rank, asked without blocking, so that every wait has a limit and can be broken.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::driver::{Gpu, Handle};
use super::error::CudaError;
use super::library::{Wanted, functions};
use super::memory::{DeviceSliceMut, Element};
use super::stream::Stream;

pub(super) const NCCL: Wanted = Wanted {
    name: "NCCL",
    file: "libnccl.so.2",
    companions: "",
    packages: &["nccl"],
    install: "install NCCL 2.19 or newer (libnccl2 of NVIDIA's repository, or the Python package nvidia-nccl-cu13)",
};

functions! {
    /// The functions of `libnccl.so.2` that rigscale calls (`nccl.h`).
    Functions {
        fn ncclGetVersion(*mut c_int) -> c_int;
        fn ncclGetUniqueId(*mut RawId) -> c_int;
        fn ncclCommInitRankConfig(*mut Handle, c_int, RawId, c_int, *mut Config) -> c_int;
        fn ncclCommSplit(Handle, c_int, c_int, *mut Handle, *mut Config) -> c_int;
        fn ncclCommGetAsyncError(Handle, *mut c_int) -> c_int;
        fn ncclCommFinalize(Handle) -> c_int;
        fn ncclCommDestroy(Handle) -> c_int;
        fn ncclCommAbort(Handle) -> c_int;
        fn ncclAllReduce(u64, u64, usize, c_int, c_int, Handle, Handle) -> c_int;
        fn ncclReduceScatter(u64, u64, usize, c_int, c_int, Handle, Handle) -> c_int;
        fn ncclAllGather(u64, u64, usize, c_int, Handle, Handle) -> c_int;
        fn ncclGetErrorString(c_int) -> *const c_char;
        fn ncclGetLastError(Handle) -> *const c_char;
    }
}

/// The oldest version whose configuration and non-blocking calls are used here.
const OLDEST: i32 = 21_900;

/// Since 2.30 ranks may share a GPU by a setting of their own (NCCL's env.rst, `NCCL_MULTI_RANK_GPU_ENABLE`).
const SHARES_GPU: i32 = 23_000;

// `ncclResult_t`
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

// `ncclDataType_t`
const UINT32: c_int = 3;
const FLOAT32: c_int = 7;
const FLOAT64: c_int = 8;
const BFLOAT16: c_int = 9;

/// `ncclSum`
const SUM: c_int = 0;

/// How often a state that changes within microseconds is looked at before the thread sleeps between looks.
const LOOKS: usize = 2_000;
/// Between two looks at what takes longer.
const PAUSE: Duration = Duration::from_micros(200);
/// A communicator that every rank leaves in order is gone within so long.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// `ncclUniqueId`
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RawId([u8; 128]);

/// What the ranks of a communicator share so that they find each other; 256 hexadecimal digits as text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NcclId([u8; 128]);

impl fmt::Debug for NcclId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "NcclId({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl From<NcclId> for String {
    fn from(id: NcclId) -> Self {
        id.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for NcclId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{} characters are no NCCL id of 256 hexadecimal digits", text.len());
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).and_then(|value| value.try_into().ok())).collect();
        let digits = digits.filter(|digits| digits.len() == 256).ok_or_else(wrong)?;
        let mut bytes = [0; 128];
        bytes.iter_mut().zip(digits.chunks_exact(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for NcclId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Settings of one communicator; none leaves it to NCCL, and NCCL's own environment comes before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NcclSettings {
    /// Fewest thread blocks of a collective.
    pub min_ctas: Option<u32>,
    /// Most thread blocks of a collective.
    pub max_ctas: Option<u32>,
    /// Thread blocks that form a cluster, on compute capability 9.0 and newer.
    pub cga_cluster_size: Option<u32>,
    /// 0: NCCL's default, 1: efficient, 2: none where possible; NCCL 2.27 and newer.
    pub cta_policy: Option<u32>,
}

/// `ncclConfig_t` as of version 2.27; an older NCCL reads the beginning that it knows.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
    comm_name: *const c_char,
    collnet_enable: c_int,
    cta_policy: c_int,
    shrink_share: c_int,
    nvls_ctas: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`
const UNDEFINED: c_int = c_int::MIN;

impl Config {
    fn of(settings: NcclSettings) -> Self {
        let given = |value: Option<u32>| value.and_then(|value| value.try_into().ok()).unwrap_or(UNDEFINED);
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 22_700,
            blocking: 0,
            cga_cluster_size: given(settings.cga_cluster_size),
            min_ctas: given(settings.min_ctas),
            max_ctas: given(settings.max_ctas),
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
            traffic_class: UNDEFINED,
            comm_name: std::ptr::null(),
            collnet_enable: UNDEFINED,
            cta_policy: given(settings.cta_policy),
            shrink_share: UNDEFINED,
            nvls_ctas: UNDEFINED,
        }
    }
}

/// The library, loaded once in a process. Its environment is read with the first call: set it before.
#[derive(Debug, Clone, Copy)]
pub struct NcclLibrary {
    functions: &'static Functions,
    version: i32,
}

impl NcclLibrary {
    /// Loads NCCL.
    ///
    /// # Errors
    /// It is missing, damaged or too old.
    pub fn load() -> Result<Self, CudaError> {
        static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
        let functions = match FUNCTIONS.get() {
            Some(functions) => functions,
            None => {
                let loaded = Functions::load(NCCL)?;
                FUNCTIONS.get_or_init(|| loaded)
            }
        };
        let mut version = 0;
        // SAFETY: writes one integer
        let code = unsafe { (functions.ncclGetVersion)(&raw mut version) };
        let library = Self { functions, version };
        library.check(code, "read the version of NCCL")?;
        if version < OLDEST {
            let wanted = "2.19 or newer";
            return Err(functions.library.version_error(library.version(), wanted).into());
        }
        Ok(library)
    }

    /// `2.30.7`
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// Whether ranks may share a GPU by NCCL's own setting; an older version must take them for ranks of several hosts.
    #[must_use]
    pub fn shares_gpu(&self) -> bool {
        SHARES_GPU <= self.version
    }

    /// The id of a new communicator. The process that made it must live until all ranks have met.
    ///
    /// # Errors
    /// NCCL found no network interface to listen on.
    pub fn new_id(&self) -> Result<NcclId, CudaError> {
        let mut id = RawId([0; 128]);
        // SAFETY: writes 128 bytes
        let code = unsafe { (self.functions.ncclGetUniqueId)(&raw mut id) };
        self.check(code, "make the id of a communicator")?;
        Ok(NcclId(id.0))
    }

    fn check(&self, code: c_int, attempt: &str) -> Result<(), CudaError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: a constant string for any number
        let name = unsafe { text((self.functions.ncclGetErrorString)(code)) };
        // SAFETY: a string of the library or null; the argument may be null
        let last = unsafe { text((self.functions.ncclGetLastError)(std::ptr::null_mut())) };
        let text = if last.is_empty() { name } else { format!("{name}: {}", last.trim()) };
        Err(CudaError::Call { attempt: attempt.into(), library: "NCCL", code, text })
    }
}

/// A string of the library.
///
/// # Safety
/// Null, or a string that ends with NUL and lives during the call.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: the caller vouches for it
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// What the communicator and those who may break it share.
#[derive(Debug)]
struct Shared {
    library: NcclLibrary,
    /// None once it was aborted or left.
    comm: Mutex<Option<Comm>>,
    broken: AtomicBool,
}

/// The communicators of one rank.
#[derive(Debug, Clone, Copy)]
struct Comm {
    /// Asked without blocking, so that meeting has a limit and can be broken off.
    met: Handle,
    /// Split from it: what it is asked for is launched by the caller. For each call of the other NCCL starts a thread,
    /// which takes longer than a small sum.
    prompt: Option<Handle>,
}

impl Comm {
    fn in_use(self) -> Handle {
        self.prompt.unwrap_or(self.met)
    }
}

// SAFETY: NCCL's communicators may be used from any thread, one at a time, which the mutex sees to
unsafe impl Send for Comm {}

impl Shared {
    /// Runs `call` on the communicator.
    fn with(&self, attempt: &str, call: impl FnOnce(&Functions, Handle) -> c_int) -> Result<c_int, CudaError> {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(comm) = *comm else { return Err(CudaError::Broken) };
        let code = call(self.library.functions, comm.in_use());
        if code != IN_PROGRESS {
            self.library.check(code, attempt)?;
        }
        Ok(code)
    }

    /// The state of the last call: done, or still in progress.
    fn is_done(&self, attempt: &str) -> Result<bool, CudaError> {
        let mut state = SUCCESS;
        self.with(attempt, |nccl, comm| {
            // SAFETY: the communicator lives; writes one integer
            unsafe { (nccl.ncclCommGetAsyncError)(comm, &raw mut state) }
        })?;
        if state != IN_PROGRESS {
            self.library.check(state, attempt)?;
        }
        Ok(state != IN_PROGRESS)
    }

    /// Waits for the last call until `deadline`; false if it is not done by then.
    fn settle(&self, attempt: &str, deadline: Instant) -> Result<bool, CudaError> {
        for look in 0.. {
            if self.is_done(attempt)? {
                return Ok(true);
            }
            if LOOKS < look {
                if deadline <= Instant::now() {
                    return Ok(false);
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(false)
    }

    fn abort(&self) {
        self.broken.store(true, Ordering::SeqCst);
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner).take();
        for handle in comm.into_iter().flat_map(|comm| [comm.prompt, Some(comm.met)]).flatten() {
            // SAFETY: taken out, so nobody uses it any more; its kernels see the flag that this sets and end
            let _ended = unsafe { (self.library.functions.ncclCommAbort)(handle) };
        }
    }

    /// Splits the communicator over which ranks met; false if that took longer than until `deadline`.
    fn split(&self, rank: c_int, settings: NcclSettings, deadline: Instant) -> Result<bool, CudaError> {
        const ATTEMPT: &str = "prepare sums that the caller launches";
        // NCCL writes here once it is done, which may be after this call gave up: 8 bytes that stay
        let split: &'static AtomicPtr<c_void> = Box::leak(Box::default());
        let mut config = Config { blocking: 1, ..Config::of(settings) };
        self.with(ATTEMPT, |nccl, comm| {
            // SAFETY: the communicator lives, `split` for ever; the configuration is read during the call
            unsafe { (nccl.ncclCommSplit)(comm, 0, rank, split.as_ptr(), &raw mut config) }
        })?;
        if !self.settle(ATTEMPT, deadline)? {
            return Ok(false);
        }
        if let Some(comm) = self.comm.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            comm.prompt = Some(split.load(Ordering::Acquire)).filter(|handle| !handle.is_null());
        }
        Ok(true)
    }

    /// Leaves in order if the others do; else ends it.
    fn leave(&self) {
        let prompt =
            self.comm.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|comm| comm.prompt.take());
        if let Some(handle) = prompt {
            // SAFETY: taken out, so nobody uses it any more
            let _left = unsafe { (self.library.functions.ncclCommDestroy)(handle) };
        }
        let finalized = self.with("leave the other ranks", |nccl, comm| {
            // SAFETY: the communicator lives
            unsafe { (nccl.ncclCommFinalize)(comm) }
        });
        let done = finalized.and_then(|_| self.settle("leave the other ranks", Instant::now() + LEAVE_LIMIT));
        if !matches!(done, Ok(true)) {
            return self.abort();
        }
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(comm) = comm {
            // SAFETY: taken out, so nobody uses it any more
            let _left = unsafe { (self.library.functions.ncclCommDestroy)(comm.met) };
        }
    }
}

/// Ends a communicator from another thread, whatever it waits for: its kernels on the GPU end without a result.
#[derive(Debug, Clone)]
pub struct Breaker(Arc<Shared>);

impl Breaker {
    /// Ends it. A communicator that is gone stays gone.
    pub fn abort(&self) {
        self.0.abort();
    }
}

/// The communicator of one rank.
#[derive(Debug)]
pub struct NcclComm {
    shared: Arc<Shared>,
    rank: usize,
    world: usize,
}

impl NcclComm {
    /// Meets the other ranks; all must come within `limit`. `started` gets what ends the meeting from another thread.
    ///
    /// # Errors
    /// NCCL failed, was broken off, or not all ranks came.
    pub fn meet(
        gpu: &Gpu,
        id: &NcclId,
        (rank, world): (usize, usize),
        settings: NcclSettings,
        limit: Duration,
        started: impl FnOnce(Breaker),
    ) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let library = NcclLibrary::load()?;
        let mut config = Config::of(settings);
        let mut handle = std::ptr::null_mut();
        let (world_int, rank_int) = (world as c_int, rank as c_int);
        let functions = library.functions;
        // SAFETY: writes one handle; reads the configuration during the call; the context of the GPU is current
        let code = unsafe {
            (functions.ncclCommInitRankConfig)(&raw mut handle, world_int, RawId(id.0), rank_int, &raw mut config)
        };
        if code != IN_PROGRESS {
            library.check(code, "begin to meet the other ranks")?;
        }
        let shared = Arc::new(Shared {
            library,
            comm: Mutex::new(Some(Comm { met: handle, prompt: None })),
            broken: AtomicBool::new(false),
        });
        started(Breaker(Arc::clone(&shared)));
        let deadline = Instant::now() + limit;
        let met = shared.settle("meet the other ranks", deadline);
        let met = met.and_then(|met| Ok(met && (world == 1 || shared.split(rank_int, settings, deadline)?)));
        match met {
            Ok(true) => Ok(Self { shared, rank, world }),
            Ok(false) => {
                shared.abort();
                Err(CudaError::NotMet { rank, world, limit: crate::units::Seconds(limit.as_secs_f64()) })
            }
            Err(error) => {
                shared.abort();
                Err(error)
            }
        }
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.world
    }

    /// What ends it from another thread.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        Breaker(Arc::clone(&self.shared))
    }

    /// True once it was ended by its breaker.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// The error that NCCL noticed meanwhile, if any.
    ///
    /// # Errors
    /// That error, or the communicator was ended.
    pub fn check(&self) -> Result<(), CudaError> {
        self.shared.is_done("exchange gradients").map(|_| ())
    }

    /// Asks `stream` to replace `buffer` by its sum over all ranks. Waits at most `limit` for NCCL to take the call: the
    /// first one connects the ranks.
    ///
    /// # Errors
    /// NCCL failed, was broken off, or did not take the call in time.
    pub fn all_reduce_sum(
        &self,
        stream: &Stream,
        buffer: &mut DeviceSliceMut<'_>,
        limit: Duration,
    ) -> Result<(), CudaError> {
        let DeviceSliceMut { address, len, element, .. } = *buffer;
        let kind = kind(element);
        self.collective("all-reduce gradients", limit, |nccl, comm| {
            // SAFETY: a live range of that many elements, reduced in place; communicator and stream live
            unsafe { (nccl.ncclAllReduce)(address, address, len, kind, SUM, comm, stream.handle()) }
        })
    }

    /// Asks `stream` to replace this rank's part of `buffer`, of `world` equal ones, by its sum over all ranks; the other
    /// parts are left as they are. Waits as [`NcclComm::all_reduce_sum`].
    ///
    /// # Errors
    /// As [`NcclComm::all_reduce_sum`].
    ///
    /// # Panics
    /// If the parts are not equal: a bug of the caller.
    pub fn reduce_scatter_sum(
        &self,
        stream: &Stream,
        buffer: &mut DeviceSliceMut<'_>,
        limit: Duration,
    ) -> Result<(), CudaError> {
        let (own, len) = self.own_part(buffer);
        let (address, kind) = (buffer.address, kind(buffer.element));
        self.collective("reduce-scatter gradients", limit, |nccl, comm| {
            // SAFETY: a live range of `world` times that many elements, of which `own` is the part that NCCL reduces in
            // place; communicator and stream live
            unsafe { (nccl.ncclReduceScatter)(address, own, len, kind, SUM, comm, stream.handle()) }
        })
    }

    /// Asks `stream` to fill `buffer`, `world` equal parts, from the parts that all ranks bring. Waits as
    /// [`NcclComm::all_reduce_sum`].
    ///
    /// # Errors
    /// As [`NcclComm::all_reduce_sum`].
    ///
    /// # Panics
    /// If the parts are not equal: a bug of the caller.
    pub fn all_gather(
        &self,
        stream: &Stream,
        buffer: &mut DeviceSliceMut<'_>,
        limit: Duration,
    ) -> Result<(), CudaError> {
        let (own, len) = self.own_part(buffer);
        let (address, kind) = (buffer.address, kind(buffer.element));
        self.collective("all-gather weights", limit, |nccl, comm| {
            // SAFETY: as for the reduce-scatter, in the other direction
            unsafe { (nccl.ncclAllGather)(own, address, len, kind, comm, stream.handle()) }
        })
    }

    /// Where this rank's part of a buffer begins, and its elements.
    fn own_part(&self, buffer: &DeviceSliceMut<'_>) -> (u64, usize) {
        assert!(buffer.len.is_multiple_of(self.world), "{} elements in {} parts", buffer.len, self.world);
        let len = buffer.len / self.world;
        (buffer.address + (self.rank * len) as u64 * buffer.element.bytes(), len)
    }

    /// Makes a call, and waits at most `limit` until NCCL has taken it.
    fn collective(
        &self,
        attempt: &str,
        limit: Duration,
        call: impl FnOnce(&Functions, Handle) -> c_int,
    ) -> Result<(), CudaError> {
        let code = self.shared.with(attempt, call)?;
        if code == IN_PROGRESS && !self.shared.settle(attempt, Instant::now() + limit)? {
            let limit = crate::units::Seconds(limit.as_secs_f64());
            return Err(CudaError::NotMet { rank: self.rank, world: self.world, limit });
        }
        Ok(())
    }
}

/// `ncclDataType_t` of what a buffer holds.
fn kind(element: Element) -> c_int {
    match element {
        Element::Bf16 => BFLOAT16,
        Element::F32 => FLOAT32,
        Element::F64 => FLOAT64,
        Element::U32 => UINT32,
        Element::U64 | Element::Byte => unreachable!("sums are of numbers that gradients are kept in"),
    }
}

impl Drop for NcclComm {
    /// Leaves in order if the others do; a rank that cannot leave within a limit ends its process with NCCL in it.
    fn drop(&mut self) {
        let shared = Arc::clone(&self.shared);
        let (say, left) = mpsc::channel();
        let leaving = thread::Builder::new().name("leave".into()).spawn(move || {
            shared.leave();
            let _nobody_waits = say.send(());
        });
        if leaving.is_ok() {
            let _in_time = left.recv_timeout(2 * LEAVE_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let mut bytes = [0; 128];
        (0..128).for_each(|index| bytes[index] = (index * 37 % 256) as u8);
        let id = NcclId(bytes);
        let text = String::from(id.clone());
        assert_eq!(text.len(), 256);
        assert_eq!(text.parse(), Ok(id));
        for wrong in ["", "00", &text[1..], &format!("{text}0"), &text.replace('a', "g")] {
            assert!(wrong.parse::<NcclId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_set_is_left_to_nccl() {
        let config = Config::of(NcclSettings { max_ctas: Some(8), ..NcclSettings::default() });
        assert_eq!((config.max_ctas, config.min_ctas, config.blocking), (8, c_int::MIN, 0));
        assert_eq!(config.size, 72, "as the C struct of nccl.h");
    }
}
