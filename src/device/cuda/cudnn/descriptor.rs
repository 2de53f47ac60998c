//! Descriptors of cuDNN's graph interface.
//!
//! Knows: which C type an attribute's elements have. Hides: creation, finalisation and destruction of
//! the opaque objects. Never panics on the library's answers, and `Drop` never fails.
//!
//! Numbers are those of `cudnn_graph.h` in cuDNN 9; they have not changed since version 8.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use super::super::driver::Handle;
use super::super::error::CudaError;
use super::Cudnn;

/// What a descriptor describes (`cudnnBackendDescriptorType_t`): number and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(c_int, &'static str);

/// A property of a descriptor (`cudnnBackendAttributeName_t`): number and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attribute(c_int, &'static str);

macro_rules! table {
    ($type:ident: $($(#[$doc:meta])* $name:ident = $number:literal;)+) => {
        impl $type {
            $($(#[$doc])* pub(super) const $name: Self = Self($number, stringify!($name));)+
        }
    };
}

table! { Kind:
    /// A point by point function with its mode and precision.
    POINTWISE = 0;
    /// An engine with its knobs set.
    ENGINE_CONFIG = 3;
    /// A question to the heuristics.
    ENGINE_HEURISTICS = 4;
    /// An engine made ready to run.
    EXECUTION_PLAN = 5;
    /// A point by point function applied to tensors.
    POINTWISE_OPERATION = 13;
    /// Operations and the tensors between them.
    OPERATION_GRAPH = 15;
    /// Addresses for one execution.
    VARIANT_PACK = 16;
    /// Shape, strides and type of an array.
    TENSOR = 17;
    /// A matrix product with its precision.
    MATMUL = 18;
    /// A matrix product applied to tensors.
    MATMUL_OPERATION = 19;
    /// A reduction with its operator and precision.
    REDUCTION = 21;
    /// A reduction applied to tensors.
    REDUCTION_OPERATION = 22;
    /// A tensor looked at through other strides.
    RESHAPE_OPERATION = 31;
}

table! { Attribute:
    /// Function of a pointwise descriptor.
    POINTWISE_MODE = 0;
    /// Precision in which it computes.
    POINTWISE_MATH_PREC = 1;
    /// The axis whose index `GEN_INDEX` writes.
    POINTWISE_AXIS = 9;
    /// Mode of the heuristics.
    ENGINEHEUR_MODE = 200;
    /// The graph asked about.
    ENGINEHEUR_OPERATION_GRAPH = 201;
    /// Engine configurations, best first.
    ENGINEHEUR_RESULTS = 202;
    /// The configuration of a plan.
    EXECUTION_PLAN_ENGINE_CONFIG = 401;
    /// Bytes of workspace of a plan.
    EXECUTION_PLAN_WORKSPACE_SIZE = 402;
    /// The function of an operation.
    OPERATION_POINTWISE_PW_DESCRIPTOR = 750;
    /// First input.
    OPERATION_POINTWISE_XDESC = 751;
    /// Second input.
    OPERATION_POINTWISE_BDESC = 752;
    /// Output.
    OPERATION_POINTWISE_YDESC = 753;
    /// Third input: the condition of `BINARY_SELECT`.
    OPERATION_POINTWISE_TDESC = 758;
    /// Handle of the graph's GPU.
    OPERATIONGRAPH_HANDLE = 800;
    /// The operations of a graph.
    OPERATIONGRAPH_OPS = 801;
    /// Alignment of the address, in bytes.
    TENSOR_BYTE_ALIGNMENT = 900;
    /// Element type.
    TENSOR_DATA_TYPE = 901;
    /// Lengths of the axes.
    TENSOR_DIMENSIONS = 902;
    /// Distances of neighbours along the axes, in elements.
    TENSOR_STRIDES = 903;
    /// The number by which a variant pack gives the address.
    TENSOR_UNIQUE_ID = 906;
    /// Whether the tensor never reaches memory.
    TENSOR_IS_VIRTUAL = 907;
    /// Whether the address is the host's and is read when executed.
    TENSOR_IS_BY_VALUE = 908;
    /// Numbers of the tensors that follow.
    VARIANT_PACK_UNIQUE_IDS = 1000;
    /// Their addresses.
    VARIANT_PACK_DATA_POINTERS = 1001;
    /// Address of the workspace.
    VARIANT_PACK_WORKSPACE = 1003;
    /// Precision of a matrix product.
    MATMUL_COMP_TYPE = 1500;
    /// Left factor.
    OPERATION_MATMUL_ADESC = 1520;
    /// Right factor.
    OPERATION_MATMUL_BDESC = 1521;
    /// Product.
    OPERATION_MATMUL_CDESC = 1522;
    /// The matrix product of an operation.
    OPERATION_MATMUL_DESC = 1523;
    /// Operator of a reduction.
    REDUCTION_OPERATOR = 1600;
    /// Precision of a reduction.
    REDUCTION_COMP_TYPE = 1601;
    /// Input.
    OPERATION_REDUCTION_XDESC = 1610;
    /// Output, of length 1 or a divisor along the reduced axes.
    OPERATION_REDUCTION_YDESC = 1611;
    /// The reduction of an operation.
    OPERATION_REDUCTION_DESC = 1612;
    /// The tensor looked at.
    OPERATION_RESHAPE_XDESC = 2200;
    /// The view.
    OPERATION_RESHAPE_YDESC = 2201;
}

/// A type that attributes may have elements of.
///
/// # Safety
/// `TYPE` is the `cudnnBackendAttributeType_t` whose C type has the size and layout of `Self`, and
/// every bit pattern that the library may write is a value of `Self`.
pub(super) unsafe trait Element: Copy {
    /// The number of the type.
    const TYPE: c_int;
}

macro_rules! elements {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)+) => { $(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) struct $name(pub(super) c_int);
        // SAFETY: a C enum of this library is an int, and any int is a value of this type.
        unsafe impl Element for $name {
            const TYPE: c_int = $number;
        }
    )+ };
}

elements! {
    /// `cudnnDataType_t`.
    DataType = 1;
    /// `cudnnBackendHeurMode_t`.
    HeuristicMode = 8;
    /// `cudnnPointwiseMode_t`.
    PointwiseMode = 14;
    /// `cudnnReduceTensorOp_t`.
    ReductionOperator = 18;
}

// SAFETY: CUDNN_TYPE_BOOLEAN is C's bool; this module only sets it.
unsafe impl Element for bool {
    const TYPE: c_int = 2;
}
// SAFETY: CUDNN_TYPE_INT64 is int64_t.
unsafe impl Element for i64 {
    const TYPE: c_int = 3;
}
// SAFETY: CUDNN_TYPE_VOID_PTR is a pointer.
unsafe impl Element for *mut c_void {
    const TYPE: c_int = 6;
}
// SAFETY: CUDNN_TYPE_CHAR is a byte.
unsafe impl Element for u8 {
    const TYPE: c_int = 24;
}

/// `CUDNN_TYPE_HANDLE`: a handle, as an attribute.
const HANDLE_TYPE: c_int = 0;

/// `CUDNN_TYPE_BACKEND_DESCRIPTOR`: a descriptor, as an attribute.
const DESCRIPTOR_TYPE: c_int = 15;

impl DataType {
    /// 32-bit float.
    pub(super) const F32: Self = Self(0);
    /// 32-bit signed integer.
    pub(super) const I32: Self = Self(4);
    /// Brain float: 16 bits.
    pub(super) const BF16: Self = Self(9);
    /// One byte per truth value in memory; only virtual tensors have it here.
    pub(super) const BOOL: Self = Self(11);
}

impl HeuristicMode {
    /// Engines that are sure to run, ordered by nothing in particular.
    pub(super) const FALLBACK: Self = Self(2);
    /// The fast model of run time.
    pub(super) const A: Self = Self(3);
}

impl PointwiseMode {
    /// x + b.
    pub(super) const ADD: Self = Self(0);
    /// x · b.
    pub(super) const MUL: Self = Self(1);
    /// x / b.
    pub(super) const DIV: Self = Self(6);
    /// x − b.
    pub(super) const SUB: Self = Self(9);
    /// eˣ.
    pub(super) const EXP: Self = Self(13);
    /// Natural logarithm of x.
    pub(super) const LOG: Self = Self(15);
    /// x.
    pub(super) const IDENTITY: Self = Self(21);
    /// x ≥ b.
    pub(super) const CMP_GE: Self = Self(303);
    /// The index along one axis of x.
    pub(super) const GEN_INDEX: Self = Self(501);
    /// x where t holds, else b.
    pub(super) const BINARY_SELECT: Self = Self(601);
}

impl ReductionOperator {
    /// Sum.
    pub(super) const ADD: Self = Self(0);
    /// Largest element.
    pub(super) const MAX: Self = Self(3);
}

/// One opaque object of the graph interface, destroyed when dropped.
pub(super) struct Descriptor {
    cudnn: Arc<Cudnn>,
    kind: Kind,
    raw: Handle,
}

impl Descriptor {
    /// Makes an empty descriptor: attributes are set next, then `finalize` is called.
    pub(super) fn new(cudnn: &Arc<Cudnn>, kind: Kind) -> Result<Self, CudaError> {
        let mut raw = null_mut();
        // SAFETY: writes one pointer to `raw`, which lives on this stack.
        let status = unsafe { (cudnn.functions.cudnnBackendCreateDescriptor)(kind.0, &mut raw) };
        cudnn.check(status, "cudnnBackendCreateDescriptor", || kind.1.into())?;
        Ok(Self { cudnn: Arc::clone(cudnn), kind, raw })
    }

    /// The library of this descriptor.
    pub(super) fn cudnn(&self) -> &Arc<Cudnn> {
        &self.cudnn
    }

    /// The pointer itself, valid as long as `self`.
    pub(super) fn raw(&self) -> Handle {
        self.raw
    }

    /// Sets an attribute to `values`, which are copied.
    pub(super) fn set<T: Element>(&mut self, attribute: Attribute, values: &[T]) -> Result<&mut Self, CudaError> {
        // SAFETY: `Element` promises that `T` has the layout of its type number.
        unsafe { self.set_raw(attribute, T::TYPE, values) }
    }

    /// Sets an attribute to other descriptors, which cuDNN keeps by reference: they must outlive
    /// this one's use, and `AttentionGraph` keeps them.
    pub(super) fn set_descriptors(&mut self, attribute: Attribute, values: &[Handle]) -> Result<&mut Self, CudaError> {
        // SAFETY: a descriptor is a pointer.
        unsafe { self.set_raw(attribute, DESCRIPTOR_TYPE, values) }
    }

    /// Sets an attribute to a handle.
    pub(super) fn set_handle(&mut self, attribute: Attribute, handle: Handle) -> Result<&mut Self, CudaError> {
        // SAFETY: a handle is a pointer.
        unsafe { self.set_raw(attribute, HANDLE_TYPE, &[handle]) }
    }

    /// Sets an attribute to elements of the C type that `element_type` numbers.
    ///
    /// # Safety
    /// `T` has the size and layout of that C type.
    unsafe fn set_raw<T>(
        &mut self,
        attribute: Attribute,
        element_type: c_int,
        values: &[T],
    ) -> Result<&mut Self, CudaError> {
        // SAFETY: cuDNN reads `values.len()` elements of the type from a slice that holds as many, and
        // copies them before it returns; `raw` is alive as `self` is.
        let status = unsafe {
            (self.cudnn.functions.cudnnBackendSetAttribute)(
                self.raw,
                attribute.0,
                element_type,
                values.len() as i64,
                values.as_ptr().cast(),
            )
        };
        self.cudnn.check(status, "cudnnBackendSetAttribute", || format!("{} of {}", attribute.1, self.kind.1))?;
        Ok(self)
    }

    /// Closes the descriptor: cuDNN checks it, and it can be used by others from now on.
    pub(super) fn finalize(&mut self) -> Result<(), CudaError> {
        // SAFETY: `raw` is alive as `self` is.
        let status = unsafe { (self.cudnn.functions.cudnnBackendFinalize)(self.raw) };
        self.cudnn.check(status, "cudnnBackendFinalize", || self.kind.1.into())
    }

    /// Reads at most `buffer.len()` elements of an attribute into `buffer`; returns how many there are.
    pub(super) fn get<T: Element>(&self, attribute: Attribute, buffer: &mut [T]) -> Result<usize, CudaError> {
        // SAFETY: `Element` promises that `T` has the layout of its type number.
        unsafe { self.get_raw(attribute, T::TYPE, buffer) }
    }

    /// Reads the first `at_most` descriptors of an attribute, which are of `kind`; fewer if there are fewer.
    pub(super) fn get_descriptors(
        &self,
        attribute: Attribute,
        kind: Kind,
        at_most: usize,
    ) -> Result<Vec<Self>, CudaError> {
        let mut found = (0..at_most).map(|_| Self::new(&self.cudnn, kind)).collect::<Result<Vec<_>, _>>()?;
        let mut raw: Vec<Handle> = found.iter().map(Self::raw).collect();
        // SAFETY: cuDNN fills the objects that the elements point to, which `found` keeps alive.
        let count = unsafe { self.get_raw(attribute, DESCRIPTOR_TYPE, &mut raw)? };
        found.truncate(count);
        Ok(found)
    }

    /// How many descriptors an attribute has.
    pub(super) fn count_descriptors(&self, attribute: Attribute) -> Result<usize, CudaError> {
        // SAFETY: an empty slice: nothing is written but the count.
        unsafe { self.get_raw::<Handle>(attribute, DESCRIPTOR_TYPE, &mut []) }
    }

    /// Reads elements of the C type that `element_type` numbers.
    ///
    /// # Safety
    /// `T` has the size and layout of that C type, and takes every bit pattern that cuDNN writes.
    unsafe fn get_raw<T>(
        &self,
        attribute: Attribute,
        element_type: c_int,
        buffer: &mut [T],
    ) -> Result<usize, CudaError> {
        let mut count = 0;
        let room = if buffer.is_empty() { null_mut() } else { buffer.as_mut_ptr().cast() };
        // SAFETY: cuDNN writes at most `buffer.len()` elements to a buffer of as many, and one number to
        // `count`, which lives on this stack; `raw` is alive as `self` is.
        let status = unsafe {
            (self.cudnn.functions.cudnnBackendGetAttribute)(
                self.raw,
                attribute.0,
                element_type,
                buffer.len() as i64,
                &mut count,
                room,
            )
        };
        self.cudnn.check(status, "cudnnBackendGetAttribute", || format!("{} of {}", attribute.1, self.kind.1))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: `raw` came from cudnnBackendCreateDescriptor and is destroyed once, here. A status
        // could only say that it was none; there is nobody to tell.
        let _ = unsafe { (self.cudnn.functions.cudnnBackendDestroyDescriptor)(self.raw) };
    }
}
