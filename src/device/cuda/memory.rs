//! Memory of the GPU: one arena that is planned before it is taken, and ranges of it.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::units::Bytes;

use super::driver::Gpu;
use super::error::CudaError;

/// Every range begins at a multiple of this: what vector loads, cuBLASLt and cuDNN like best.
pub const ALIGNMENT: u64 = 256;

/// What `bytes` take in an arena.
#[must_use]
pub fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 8 bits of exponent, 7 of fraction.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Token ids and their order.
    U32,
    /// Indices of elements.
    U64,
    /// Working memory of a library.
    Byte,
}

impl Element {
    /// Size of one.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 | Self::U64 => 8,
        }
    }
}

/// One allocation, freed with the last range in it.
struct Block {
    gpu: Gpu,
    address: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        let _at_exit = self.gpu.make_current();
        // SAFETY: allocated in `Arena::new` and freed once; `cuMemFree` waits for work that still uses it
        let _at_exit = unsafe { (self.gpu.driver().cuMemFree_v2)(self.address) };
    }
}

/// The memory that was planned, given out from front to back.
pub struct Arena {
    block: Arc<Block>,
    bytes: u64,
    used: u64,
}

impl fmt::Debug for Arena {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Arena({} of {} used)", Bytes(self.used), Bytes(self.bytes))
    }
}

impl Arena {
    /// Takes `bytes` of the GPU's memory.
    ///
    /// # Errors
    /// It has less free memory, which is looked at before anything is taken.
    pub fn new(gpu: &Gpu, bytes: Bytes) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let (free, _) = gpu.memory()?;
        if free < bytes {
            return Err(CudaError::Memory { needed: bytes, free });
        }
        let mut address = 0;
        // SAFETY: writes one address, which `Block` frees
        let code = unsafe { (gpu.driver().cuMemAlloc_v2)(&raw mut address, bytes.0.max(1) as usize) };
        gpu.driver().check(code, || format!("take {bytes} of the GPU's memory"))?;
        Ok(Self { block: Arc::new(Block { gpu: gpu.clone(), address }), bytes: bytes.0, used: 0 })
    }

    /// The next `len` elements; their content is arbitrary.
    ///
    /// # Errors
    /// The plan was too small.
    pub fn take(&mut self, len: usize, element: Element) -> Result<DeviceBuffer, CudaError> {
        self.take_with_room(len, len, element)
    }

    /// The same in memory that has `room` for as many elements or more, as whole parts of a buffer need that is shared out
    /// among ranks.
    ///
    /// # Errors
    /// The plan was too small.
    pub fn take_with_room(&mut self, len: usize, room: usize, element: Element) -> Result<DeviceBuffer, CudaError> {
        let room = room.max(len);
        let bytes = padded(room as u64 * element.bytes());
        let left = self.bytes - self.used;
        if left < bytes {
            return Err(CudaError::Plan { needed: Bytes(bytes), left: Bytes(left) });
        }
        let offset = self.used;
        self.used += bytes;
        Ok(DeviceBuffer { block: Arc::clone(&self.block), offset, len, element, room })
    }

    /// Bytes given out.
    #[must_use]
    pub fn used(&self) -> Bytes {
        Bytes(self.used)
    }
}

/// An owned range of an arena.
pub struct DeviceBuffer {
    block: Arc<Block>,
    offset: u64,
    len: usize,
    element: Element,
    /// Elements that its memory has room for.
    room: usize,
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "DeviceBuffer({} × {:?})", self.len, self.element)
    }
}

impl DeviceBuffer {
    /// Whose memory it is.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.block.gpu
    }

    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What they are.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// A buffer of `len` elements from `skip` bytes on in the memory of this one, if it is that large. Both then share
    /// memory: the content of one is lost when the other is written.
    #[must_use]
    pub fn reuse(&self, skip: u64, len: usize, element: Element) -> Option<Self> {
        let fits = skip + len as u64 * element.bytes() <= self.len as u64 * self.element.bytes();
        let offset = self.offset + skip;
        fits.then(|| Self { block: Arc::clone(&self.block), offset, len, element, room: len })
    }

    /// Its first `len` elements as a buffer, which shares their memory.
    ///
    /// # Panics
    /// If it holds fewer: a bug of the caller.
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        assert!(len <= self.len, "{len} of {} elements", self.len);
        Self { block: Arc::clone(&self.block), offset: self.offset, len, element: self.element, room: len }
    }

    /// The buffer and what follows it in its own memory, up to `len` elements, to write.
    ///
    /// # Panics
    /// If its memory has no such room: a bug of the caller.
    #[must_use]
    pub fn room_mut(&mut self, len: usize) -> DeviceSliceMut<'_> {
        assert!(len <= self.room, "{len} elements where there is room for {}", self.room);
        let address = self.block.address + self.offset;
        DeviceSliceMut { address, len, element: self.element, buffer: PhantomData }
    }

    /// A part, to read.
    ///
    /// # Panics
    /// If the range reaches beyond the buffer: a bug of the caller.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        let address = self.block.address + self.offset + range.start as u64 * self.element.bytes();
        DeviceSlice { address, len: range.len(), element: self.element, buffer: PhantomData }
    }

    /// A part, to write.
    #[must_use]
    pub fn slice_mut(&mut self, range: Range<usize>) -> DeviceSliceMut<'_> {
        let DeviceSlice { address, len, element, .. } = self.slice(range);
        DeviceSliceMut { address, len, element, buffer: PhantomData }
    }

    /// All of it, to read.
    #[must_use]
    pub fn all(&self) -> DeviceSlice<'_> {
        self.slice(0..self.len)
    }

    /// All of it, to write.
    #[must_use]
    pub fn all_mut(&mut self) -> DeviceSliceMut<'_> {
        self.slice_mut(0..self.len)
    }
}

/// A part of a buffer, to read.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: Element,
    buffer: PhantomData<&'a DeviceBuffer>,
}

impl DeviceSlice<'_> {
    /// What it holds.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// The address, after a look at what the slice holds.
    ///
    /// # Panics
    /// If it holds other elements or fewer: a bug of the caller.
    #[track_caller]
    pub(super) fn holding(&self, len: usize, element: Element) -> u64 {
        assert!(self.element == element && len <= self.len, "{self:?} where {len} × {element:?} are needed");
        self.address
    }
}

/// A part of a buffer, to write.
#[derive(Debug)]
pub struct DeviceSliceMut<'a> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: Element,
    buffer: PhantomData<&'a mut DeviceBuffer>,
}

impl DeviceSliceMut<'_> {
    /// What it holds.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// As [`DeviceSlice::holding`].
    #[track_caller]
    pub(super) fn holding(&mut self, len: usize, element: Element) -> u64 {
        assert!(self.element == element && len <= self.len, "{self:?} where {len} × {element:?} are needed");
        self.address
    }
}

/// Memory of the host that the GPU reads and writes by itself, in whole `T`s.
pub struct Pinned<T: bytemuck::Pod> {
    gpu: Gpu,
    address: *mut T,
    len: usize,
}

impl<T: bytemuck::Pod> fmt::Debug for Pinned<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Pinned({} elements)", self.len)
    }
}

impl<T: bytemuck::Pod> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system has no memory that may stay in place.
    pub fn zeros(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        gpu.make_current()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        let bytes = len.max(1) * size_of::<T>();
        // SAFETY: writes one address, which `Drop` frees
        let code = unsafe { (gpu.driver().cuMemHostAlloc)(&raw mut address, bytes, 0) };
        gpu.driver().check(code, || format!("pin {bytes} bytes of host memory"))?;
        // SAFETY: the range was just allocated with that many bytes, aligned to a page; zeros are a valid `T`
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        Ok(Self { gpu: gpu.clone(), address: address.cast(), len })
    }

    /// What it holds. The caller has waited for copies into it.
    #[must_use]
    pub fn get(&self) -> &[T] {
        // SAFETY: allocated with `len` elements and initialised; lives as long as `self`; any bits are a valid `T`
        unsafe { std::slice::from_raw_parts(self.address, self.len) }
    }

    /// The same, to write. The caller has waited for copies from it.
    #[must_use]
    pub fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `get`, and borrowed exclusively
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }

    pub(super) fn address(&self) -> *mut c_void {
        self.address.cast()
    }
}

impl<T: bytemuck::Pod> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _at_exit = self.gpu.make_current();
        // SAFETY: allocated once and freed once; `cuMemFreeHost` waits for copies under way
        let _at_exit = unsafe { (self.gpu.driver().cuMemFreeHost)(self.address.cast()) };
    }
}
