//! MPI, linked where the feature `mpi` is on: joined once in a process, and asked without blocking.
//!
//! The calls are the raw ones of the `mpi` crate: its safe ones throw return codes away, do not compare lengths, and
//! cannot give up a request that does not end.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::AsCommunicator;
use mpi::traits::{AsRaw, Communicator};
use thiserror::Error;

use super::{Floats, chunk};

/// How long a rank asks again and again whether a call has ended before it rests in between: MPI makes progress only
/// while it is asked.
const EAGER: Duration = Duration::from_millis(2);

/// A rest between two questions: short beside a message, long beside a question.
const PAUSE: Duration = Duration::from_micros(50);

/// Code with which a panic ends the job: that of a panicking Rust program.
const PANICKED: c_int = 101;

/// A panicking thread waits so long for the call of another to end; then the process ends without telling MPI why.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// Whether this process is a member of MPI. Whoever calls MPI holds it: the level of threading that is asked for demands
/// that calls come one at a time, from whichever thread.
static MEMBER: Mutex<bool> = Mutex::new(false);

/// Calls MPI while no other thread does.
fn in_turn<T>(call: impl FnOnce() -> T) -> T {
    let _turn = MEMBER.lock().unwrap_or_else(PoisonError::into_inner);
    call()
}

/// Why MPI did not do what it was asked.
#[derive(Debug, Error)]
pub enum MpiError {
    /// MPI is too old, or joined already.
    #[error("could not join MPI: {why}")]
    Join {
        /// Why not.
        why: &'static str,
    },
    /// A call failed.
    #[error("could not {attempt}: MPI error {code} ({text})")]
    Call {
        /// What was tried.
        attempt: &'static str,
        /// MPI's code.
        code: c_int,
        /// MPI's words.
        text: String,
    },
    /// A buffer has more elements than one call of MPI takes.
    #[error("a buffer of {elements} elements is more than one call of MPI takes; make buckets smaller (--bucket-mib)")]
    TooLong {
        /// Elements, or bytes.
        elements: usize,
    },
    /// Not all ranks took part in time.
    #[error("rank {rank} waited {limit:?} for a call of MPI in which not all ranks took part")]
    Late {
        /// Who waited.
        rank: usize,
        /// How long.
        limit: Duration,
    },
    /// MPI cannot be left.
    #[error("could not leave MPI: its group is still in use")]
    InUse,
    /// The exchange was broken off from another thread, or has failed before.
    #[error("the exchange over MPI was broken off")]
    Broken,
}

/// This process's membership in MPI. Unless it is ended in order, MPI is left as it is: its end waits for all ranks.
/// It stays on the thread that has joined, which is the one that may leave.
pub struct MpiSession {
    universe: Option<Universe>,
    /// Shared with the group, which MPI must outlive.
    used: Arc<()>,
    _stays: PhantomData<*const ()>,
}

impl fmt::Debug for MpiSession {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("MpiSession")
    }
}

impl MpiSession {
    /// Joins MPI, once in a process, on the thread that will end it. Waits until every process of the job does, without a
    /// limit of its own. From then on a panic of any thread ends the whole job: it would leave the others waiting.
    ///
    /// # Errors
    /// MPI was joined before, cannot be used from several threads in turn, or refuses.
    pub fn begin() -> Result<(Self, MpiGroup), MpiError> {
        let mut member = MEMBER.lock().unwrap_or_else(PoisonError::into_inner);
        let (universe, threading) = mpi::initialize_with_threading(mpi::Threading::Serialized)
            .ok_or(MpiError::Join { why: "this process has joined it before" })?;
        let session = Self { universe: Some(universe), used: Arc::default(), _stays: PhantomData };
        if threading < mpi::Threading::Serialized {
            return Err(MpiError::Join { why: "it cannot be called from more than one thread" });
        }
        let world = mpi::topology::SimpleCommunicator::world();
        let (rank, size) = (world.rank().unsigned_abs() as usize, world.size().unsigned_abs() as usize);
        let raw = world.as_communicator().as_raw();
        // SAFETY: MPI is initialized (the universe above), no other thread calls it (`member`), and the handles are its
        // constants
        let code = unsafe { ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN) };
        *member = true;
        drop(member);
        check("make errors of MPI return", code)?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            abort_job();
        }));
        let (used, broken) = (Arc::clone(&session.used), Arc::default());
        let group = MpiGroup { world: World(raw), rank, size, broken, spare: Vec::new(), _used: used };
        Ok((session, group))
    }

    /// Leaves MPI; returns once all ranks do. The group must have been dropped.
    ///
    /// # Errors
    /// It was not: another thread may be in the middle of a call. MPI is left as it is then.
    pub fn end(mut self) -> Result<(), MpiError> {
        if Arc::get_mut(&mut self.used).is_none() {
            return Err(MpiError::InUse);
        }
        let _before = std::panic::take_hook();
        let mut member = MEMBER.lock().unwrap_or_else(PoisonError::into_inner);
        *member = false;
        drop(self.universe.take());
        Ok(())
    }
}

/// Ends the whole job as its turn comes. If another thread stays in a call, the process ends, which its launcher takes for
/// the end of the job as well.
fn abort_job() {
    let begin = Instant::now();
    let member = loop {
        match MEMBER.try_lock() {
            Ok(member) => break member,
            Err(TryLockError::Poisoned(member)) => break member.into_inner(),
            Err(TryLockError::WouldBlock) if begin.elapsed() >= ABORT_PATIENCE => std::process::exit(PANICKED),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
        }
    };
    if *member {
        // SAFETY: MPI was joined and not left, and no other thread calls it: both are what `member` says
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, PANICKED) };
    }
}

impl Drop for MpiSession {
    fn drop(&mut self) {
        // a rank that failed cannot expect the others to come to the end
        if let Some(universe) = self.universe.take() {
            mem::forget(universe);
        }
    }
}

/// The handle of the communicator of all ranks.
#[derive(Clone, Copy)]
struct World(ffi::MPI_Comm);

// SAFETY: the handle names a communicator that MPI keeps, for all threads of the process, until it is left, which no
// `MpiSession` does while there is a group; calls come one at a time, as each is made `in_turn`.
unsafe impl Send for World {}

/// All ranks of the job.
pub struct MpiGroup {
    world: World,
    rank: usize,
    size: usize,
    broken: Arc<AtomicBool>,
    /// Buffers that take what comes next.
    spare: Vec<Floats>,
    /// Keeps the session from leaving MPI.
    _used: Arc<()>,
}

impl fmt::Debug for MpiGroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "MpiGroup(rank {} of {})", self.rank, self.size)
    }
}

/// What one call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Sums over all ranks.
    Sum,
    /// Brings together what each rank holds of its [`chunk`].
    Gather,
}

/// What one call reads and writes. MPI may do so until the call has ended.
struct Given {
    sent: Floats,
    received: Floats,
    /// Elements of each rank's chunk.
    lengths: Vec<c_int>,
    /// Where each rank's chunk begins.
    starts: Vec<c_int>,
}

impl MpiGroup {
    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// What ends every wait, now and later, once it is set.
    #[must_use]
    pub fn breaker(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.broken)
    }

    /// Replaces each buffer by its sum over all ranks; all sums are under way at once. After an error buffers hold zeros,
    /// and the group stays broken: what MPI may still write to is never freed.
    ///
    /// # Errors
    /// A call failed, did not end within `limit`, or the exchange was broken off.
    pub fn sum(&mut self, buffers: &mut [&mut Floats], limit: Duration) -> Result<(), MpiError> {
        self.exchange(Call::Sum, buffers, limit)
    }

    /// Fills the other chunks ([`chunk`]) of each buffer with those that their ranks bring; otherwise as [`Self::sum`].
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn gather(&mut self, buffers: &mut [&mut Floats], limit: Duration) -> Result<(), MpiError> {
        self.exchange(Call::Gather, buffers, limit)
    }

    fn exchange(&mut self, call: Call, buffers: &mut [&mut Floats], limit: Duration) -> Result<(), MpiError> {
        self.whole()?;
        let fits = buffers.iter().try_for_each(|buffer| count(buffer.len()).map(drop));
        fits.inspect_err(|_| self.break_off())?;
        let mut given = Vec::with_capacity(buffers.len());
        for buffer in buffers.iter_mut() {
            given.push(self.give(mem::replace(*buffer, Floats::zeros(0)))?);
        }
        let mut requests = Vec::with_capacity(given.len());
        let begun = given.iter_mut().try_for_each(|given| {
            requests.push(self.begin_call(call, given)?);
            Ok(())
        });
        let ended = begun.and_then(|()| self.complete(&mut requests, limit));
        self.take_back(buffers, given, ended)
    }

    /// Prepares a call on `sent`.
    fn give(&mut self, sent: Floats) -> Result<Given, MpiError> {
        let received = self.spare(sent.len());
        let chunks = (0..self.size).map(|rank| chunk(sent.len(), rank, self.size));
        let numbers: Vec<(c_int, c_int)> =
            chunks.map(|chunk| Ok((count(chunk.len())?, count(chunk.start)?))).collect::<Result<_, _>>()?;
        let (lengths, starts) = numbers.into_iter().unzip();
        Ok(Given { sent, received, lengths, starts })
    }

    fn begin_call(&self, call: Call, given: &mut Given) -> Result<ffi::MPI_Request, MpiError> {
        let Given { sent, received, lengths, starts } = given;
        let whole = count(sent.len())?;
        let own = &sent[chunk(sent.len(), self.rank, self.size)];
        let (all, own) = (sent.as_ptr().cast::<c_void>(), own.as_ptr().cast::<c_void>());
        let received = received.as_mut_ptr().cast::<c_void>();
        // SAFETY: any handle may stand here before the call writes it; the handles of type and operation are constants
        let (mut request, float, add) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM) };
        // SAFETY: both ranges have `whole` elements of the type that is named and do not overlap (two owned buffers); what is
        // sent of a chunk, and where chunks go, lies inside (`chunk` stays below the length). They and the two lists stay
        // where they are until the request has ended: the caller keeps `given`, or leaks it
        let code = in_turn(|| unsafe {
            match call {
                Call::Sum => ffi::MPI_Iallreduce(all, received, whole, float, add, self.world.0, &raw mut request),
                Call::Gather => {
                    let (counts, places) = (lengths.as_ptr(), starts.as_ptr());
                    let length = lengths[self.rank];
                    let world = self.world.0;
                    ffi::MPI_Iallgatherv(own, length, float, received, counts, places, float, world, &raw mut request)
                }
            }
        });
        check("begin an exchange", code).map(|()| request)
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn barrier(&mut self, limit: Duration) -> Result<(), MpiError> {
        self.whole()?;
        // SAFETY: any handle may stand here before the call writes it
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: the call reads and writes nothing but its own request
        let code = in_turn(|| unsafe { ffi::MPI_Ibarrier(self.world.0, &raw mut request) });
        let ended = check("begin a barrier", code).and_then(|()| self.complete(&mut [request], limit));
        ended.inspect_err(|_| self.break_off())
    }

    /// Copies `bytes` of rank 0 to all ranks, which bring as many.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn broadcast(&mut self, bytes: Vec<u8>, limit: Duration) -> Result<Vec<u8>, MpiError> {
        self.whole()?;
        let length = count(bytes.len())?;
        let mut bytes = mem::ManuallyDrop::new(bytes);
        // SAFETY: any handle may stand here before the call writes it
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: `bytes` has `length` bytes, and is freed only once the request has ended
        let code = in_turn(|| unsafe {
            let buffer = bytes.as_mut_ptr().cast::<c_void>();
            ffi::MPI_Ibcast(buffer, length, ffi::RSMPI_UINT8_T, 0, self.world.0, &raw mut request)
        });
        check("begin a broadcast", code)
            .and_then(|()| self.complete(&mut [request], limit))
            .inspect_err(|_| self.break_off())?;
        Ok(mem::ManuallyDrop::into_inner(bytes))
    }

    fn whole(&self) -> Result<(), MpiError> {
        if self.broken.load(Ordering::SeqCst) { Err(MpiError::Broken) } else { Ok(()) }
    }

    fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// A buffer of `length` elements that nobody uses.
    fn spare(&mut self, length: usize) -> Floats {
        let found = self.spare.iter().position(|spare| spare.len() == length);
        found.map_or_else(|| Floats::zeros(length), |place| self.spare.swap_remove(place))
    }

    /// Returns once all requests have ended.
    fn complete(&self, requests: &mut [ffi::MPI_Request], limit: Duration) -> Result<(), MpiError> {
        let number = count(requests.len())?;
        let begin = Instant::now();
        loop {
            let mut ended: c_int = 0;
            // SAFETY: `requests` are `number` requests that this rank began; statuses may be ignored
            let code = in_turn(|| unsafe {
                ffi::MPI_Testall(number, requests.as_mut_ptr(), &raw mut ended, ffi::RSMPI_STATUSES_IGNORE)
            });
            check("finish a call", code)?;
            if ended != 0 {
                return Ok(());
            }
            self.whole()?;
            let waited = begin.elapsed();
            if waited >= limit {
                return Err(MpiError::Late { rank: self.rank, limit });
            }
            if waited < EAGER { thread::yield_now() } else { thread::sleep(PAUSE) }
        }
    }

    fn take_back(
        &mut self,
        buffers: &mut [&mut Floats],
        given: Vec<Given>,
        ended: Result<(), MpiError>,
    ) -> Result<(), MpiError> {
        if ended.is_err() {
            self.break_off();
        }
        for (buffer, given) in buffers.iter_mut().zip(given) {
            if ended.is_ok() {
                **buffer = given.received;
                self.spare.push(given.sent);
            } else {
                **buffer = Floats::zeros(given.sent.len());
                mem::forget(given);
            }
        }
        ended
    }
}

/// A length as MPI takes it.
fn count(elements: usize) -> Result<c_int, MpiError> {
    c_int::try_from(elements).map_err(|_| MpiError::TooLong { elements })
}

fn check(attempt: &'static str, code: c_int) -> Result<(), MpiError> {
    // MPI_SUCCESS is 0 in every MPI (MPI 4.0, section 9.4)
    if code == 0 {
        return Ok(());
    }
    let mut text: [c_char; 512] = [0; 512];
    let mut length: c_int = 0;
    // SAFETY: MPI writes at most MPI_MAX_ERROR_STRING characters, which is 256 in Open MPI and 512 in MPICH, and their number
    let told = in_turn(|| unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &raw mut length) });
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    let bytes: Vec<u8> = text[..length].iter().map(|letter| letter.cast_unsigned()).collect();
    let text = if told == 0 { String::from_utf8_lossy(&bytes).into_owned() } else { "no words for it".into() };
    Err(MpiError::Call { attempt, code, text })
}
