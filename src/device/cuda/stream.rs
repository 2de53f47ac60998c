//! The order of work on a GPU: streams, events and recorded graphs.

use std::fmt;
use std::rc::Rc;

use crate::units::Seconds;

use super::driver::{Gpu, Handle};
use super::error::CudaError;
use super::memory::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Pinned};

/// `CU_STREAM_NON_BLOCKING`: it does not wait for the default stream.
const NON_BLOCKING: u32 = 1;
/// Below every priority that a GPU has; the driver takes the highest that there is.
const URGENT: i32 = -100;
/// `CUDA_ERROR_NOT_READY`
const NOT_READY: i32 = 600;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: other threads may allocate while a graph is recorded.
const CAPTURE_RELAXED: i32 = 2;

/// Work of a GPU in one order.
pub struct Stream {
    gpu: Gpu,
    handle: Handle,
}

impl fmt::Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Stream({:?})", self.gpu)
    }
}

impl Stream {
    /// A stream of normal priority.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::with_priority(gpu, 0)
    }

    /// A stream whose thread blocks come before those of others that wait for a multiprocessor.
    ///
    /// # Errors
    /// The driver failed.
    pub fn urgent(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::with_priority(gpu, URGENT)
    }

    fn with_priority(gpu: &Gpu, priority: i32) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle, which `Drop` destroys
        let code = unsafe { (gpu.driver().cuStreamCreateWithPriority)(&raw mut handle, NON_BLOCKING, priority) };
        gpu.driver().check(code, || "make a stream".into())?;
        Ok(Self { gpu: gpu.clone(), handle })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Its GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Waits until all its work is done; tells the first error of it.
    ///
    /// # Errors
    /// A kernel or copy failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives
        let code = unsafe { (self.gpu.driver().cuStreamSynchronize)(self.handle) };
        self.gpu.driver().check(code, || "finish the work of the GPU".into())
    }

    /// What it is asked for from here on waits until the other stream has passed `event`.
    ///
    /// # Errors
    /// The driver failed.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both live
        let code = unsafe { (self.gpu.driver().cuStreamWaitEvent)(self.handle, event.0.handle, 0) };
        self.gpu.driver().check(code, || "let one stream wait for another".into())
    }

    /// Fills `dst` with one byte.
    ///
    /// # Errors
    /// The driver failed.
    pub fn fill(&self, dst: DeviceSliceMut<'_>, byte: u8) -> Result<(), CudaError> {
        let bytes = dst.len * dst.element.bytes() as usize;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the slice is a range of a live allocation of that many bytes
        let code = unsafe { (self.gpu.driver().cuMemsetD8Async)(dst.address, byte, bytes, self.handle) };
        self.gpu.driver().check(code, || "fill memory".into())
    }

    /// Copies the beginning of `src` to all of `dst`. `src` must not change before the stream has passed this point.
    ///
    /// # Errors
    /// The driver failed.
    ///
    /// # Panics
    /// If `src` is too short: a bug of the caller.
    pub fn upload<T: bytemuck::Pod>(&self, dst: DeviceSliceMut<'_>, src: &Pinned<T>) -> Result<(), CudaError> {
        let bytes = dst.len * dst.element.bytes() as usize;
        assert!(bytes <= size_of_val(src.get()), "{bytes} bytes from {src:?}");
        let (driver, from) = (self.gpu.driver(), src.address());
        // SAFETY: both ranges hold that many bytes; the pinned one is freed only after copies are done
        let code = unsafe { (driver.cuMemcpyHtoDAsync_v2)(dst.address, from, bytes, self.handle) };
        driver.check(code, || format!("copy {bytes} bytes to the GPU"))
    }

    /// Copies all of `src` to the beginning of `dst`, which may be read once the stream has passed this point.
    ///
    /// # Errors
    /// The driver failed.
    ///
    /// # Panics
    /// If `dst` is too short: a bug of the caller.
    pub fn download<T: bytemuck::Pod>(&self, dst: &mut Pinned<T>, src: DeviceSlice<'_>) -> Result<(), CudaError> {
        let bytes = src.len * src.element.bytes() as usize;
        assert!(bytes <= size_of_val(dst.get()), "{bytes} bytes to {dst:?}");
        let (driver, to) = (self.gpu.driver(), dst.address());
        // SAFETY: as in `upload`
        let code = unsafe { (driver.cuMemcpyDtoHAsync_v2)(to, src.address, bytes, self.handle) };
        driver.check(code, || format!("copy {bytes} bytes from the GPU"))
    }

    /// Copies `src` to `dst`, of the same size.
    ///
    /// # Errors
    /// The driver failed.
    ///
    /// # Panics
    /// If their sizes differ: a bug of the caller.
    pub fn copy(&self, dst: DeviceSliceMut<'_>, src: DeviceSlice<'_>) -> Result<(), CudaError> {
        let bytes = src.len * src.element.bytes() as usize;
        assert_eq!(bytes, dst.len * dst.element.bytes() as usize, "a copy between ranges of two sizes");
        // SAFETY: both are ranges of live allocations of that many bytes
        let code = unsafe { (self.gpu.driver().cuMemcpyDtoDAsync_v2)(dst.address, src.address, bytes, self.handle) };
        self.gpu.driver().check(code, || format!("copy {bytes} bytes on the GPU"))
    }

    /// Copies `src` to `dst`, of the same size, in the memory of another GPU: also where neither may reach the other, by
    /// way of the host then.
    ///
    /// # Errors
    /// The driver failed.
    ///
    /// # Panics
    /// If their sizes differ: a bug of the caller.
    pub fn copy_across(&self, dst: &mut DeviceBuffer, src: &DeviceBuffer) -> Result<(), CudaError> {
        let bytes = src.len() * src.element().bytes() as usize;
        assert_eq!(bytes, dst.len() * dst.element().bytes() as usize, "a copy between buffers of two sizes");
        let (to, from) = (dst.gpu().context(), src.gpu().context());
        let (into, out_of) = (dst.all_mut().address, src.all().address);
        // SAFETY: both are live allocations of that many bytes in the contexts that stand beside them
        let code = unsafe { (self.gpu.driver().cuMemcpyPeerAsync)(into, to, out_of, from, bytes, self.handle) };
        self.gpu.driver().check(code, || format!("copy {bytes} bytes to another GPU"))
    }

    /// From here on, what the stream is asked for is recorded instead of done. Nothing may wait for the stream.
    ///
    /// # Errors
    /// The driver failed.
    pub fn begin_recording(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives
        let code = unsafe { (self.gpu.driver().cuStreamBeginCapture_v2)(self.handle, CAPTURE_RELAXED) };
        self.gpu.driver().check(code, || "begin to record a graph".into())
    }

    /// What was recorded. Must follow [`Stream::begin_recording`], whatever failed between the two.
    ///
    /// # Errors
    /// Something could not be recorded.
    pub fn end_recording(&self) -> Result<Graph, CudaError> {
        let driver = self.gpu.driver();
        let mut graph = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed below
        let code = unsafe { (driver.cuStreamEndCapture)(self.handle, &raw mut graph) };
        driver.check(code, || "record a graph".into())?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: reads the graph, writes one handle that `Graph` destroys
        let code = unsafe { (driver.cuGraphInstantiateWithFlags)(&raw mut executable, graph, 0) };
        // SAFETY: made above, and an executable graph does not need it
        let _unneeded = unsafe { (driver.cuGraphDestroy)(graph) };
        driver.check(code, || "make a graph executable".into())?;
        Ok(Graph { gpu: self.gpu.clone(), executable })
    }

    /// Does what was recorded.
    ///
    /// # Errors
    /// The driver failed.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        // SAFETY: both live; the buffers that the graph names lie in the arena of whoever recorded it, which outlives it
        let code = unsafe { (self.gpu.driver().cuGraphLaunch)(graph.executable, self.handle) };
        self.gpu.driver().check(code, || "launch a graph".into())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _at_exit = self.synchronize();
        // SAFETY: made once and destroyed once
        let _at_exit = unsafe { (self.gpu.driver().cuStreamDestroy_v2)(self.handle) };
    }
}

/// Recorded work.
pub struct Graph {
    gpu: Gpu,
    executable: Handle,
}

impl fmt::Debug for Graph {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Graph({:?})", self.gpu)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once; a launch under way keeps what it needs
        let _at_exit = unsafe { (self.gpu.driver().cuGraphExecDestroy)(self.executable) };
    }
}

/// A point in the order of a stream, with its time.
#[derive(Debug, Clone)]
pub struct Event(Rc<Raw>);

struct Raw {
    gpu: Gpu,
    handle: Handle,
}

impl fmt::Debug for Raw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Event({:?})", self.gpu)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once
        let _at_exit = unsafe { (self.gpu.driver().cuEventDestroy_v2)(self.handle) };
    }
}

impl Event {
    /// Waits until the stream has passed it.
    ///
    /// # Errors
    /// Work before it failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives
        let code = unsafe { (self.0.gpu.driver().cuEventSynchronize)(self.0.handle) };
        self.0.gpu.driver().check(code, || "wait for the GPU".into())
    }

    /// Whether the stream has passed it.
    ///
    /// # Errors
    /// Work before it failed.
    pub fn has_passed(&self) -> Result<bool, CudaError> {
        // SAFETY: the event lives
        let code = unsafe { (self.0.gpu.driver().cuEventQuery)(self.0.handle) };
        if code == NOT_READY {
            return Ok(false);
        }
        self.0.gpu.driver().check(code, || "look at the GPU".into()).map(|()| true)
    }

    /// Time from `earlier` to this, resolved to 0.5 µs by the GPU; waits for both.
    ///
    /// # Errors
    /// Work before them failed.
    pub fn since(&self, earlier: &Self) -> Result<Seconds, CudaError> {
        self.wait()?;
        earlier.wait()?;
        let mut milliseconds = 0.0;
        let driver = self.0.gpu.driver();
        // SAFETY: writes one number; both events live and were recorded
        let code = unsafe { (driver.cuEventElapsedTime)(&raw mut milliseconds, earlier.0.handle, self.0.handle) };
        driver.check(code, || "read the time between two events".into())?;
        Ok(Seconds(f64::from(milliseconds) * 1e-3))
    }
}

/// Events that are used again once nobody holds them.
#[derive(Debug, Default)]
pub struct Events(Vec<Event>);

impl Events {
    /// A point after all that `stream` was asked for so far.
    ///
    /// # Errors
    /// The driver failed.
    pub fn record(&mut self, stream: &Stream) -> Result<Event, CudaError> {
        let free = self.0.iter().position(|event| Rc::strong_count(&event.0) == 1);
        let event = match free {
            Some(index) => self.0[index].clone(),
            None => {
                self.0.push(Self::make(stream.gpu())?);
                self.0[self.0.len() - 1].clone()
            }
        };
        let driver = stream.gpu().driver();
        // SAFETY: both live
        let code = unsafe { (driver.cuEventRecord)(event.0.handle, stream.handle) };
        driver.check(code, || "record an event".into())?;
        Ok(event)
    }

    fn make(gpu: &Gpu) -> Result<Event, CudaError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle, which `Raw` destroys; flag 0 keeps its time
        let code = unsafe { (gpu.driver().cuEventCreate)(&raw mut handle, 0) };
        gpu.driver().check(code, || "make an event".into())?;
        Ok(Event(Rc::new(Raw { gpu: gpu.clone(), handle })))
    }
}
