//! The operations of causal attention as cuDNN's pattern matcher knows them.
//!
//! Knows: the order and the kind of the nodes of flash attention, forward and backward (facts from
//! cudnn-frontend's composite attention nodes; cuDNN before 9.21 has no single node that masks).
//! Hides: the descriptors of tensors between the nodes. Never asks whether an engine runs the result.
//!
//! A tensor has four axes: batch, head, row, column. Strides count elements.

use std::sync::Arc;

use super::super::error::CudaError;
use super::Cudnn;
use super::descriptor::{Attribute, DataType, Descriptor, Kind, PointwiseMode, ReductionOperator};
use super::dims::AttentionDims;

/// The tensors that have an address, by the number under which a variant pack gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(super) enum Id {
    /// q[B, H, T, D], bf16, inside qkv.
    Q = 1,
    /// k[B, K, T, D], bf16, inside qkv.
    K,
    /// v[B, K, T, D], bf16, inside qkv.
    V,
    /// att[B, H, T, D], bf16: the output.
    Att,
    /// lse[B, H, T, 1], f32: logarithm of the sum of the exponentials of a row's scores.
    Lse,
    /// 1/√D, f32, on the host.
    Scale,
    /// −∞, f32, on the host.
    Masked,
    /// 1, f32, on the host.
    One,
    /// datt[B, H, T, D], bf16.
    Datt,
    /// dq[B, H, T, D], bf16, inside dqkv.
    Dq,
    /// dk[B, K, T, D], bf16, inside dqkv.
    Dk,
    /// dv[B, K, T, D], bf16, inside dqkv.
    Dv,
    /// Σ over D of datt · att, [B, H, T, 1], f32, in the workspace.
    RowSum,
    /// dq before it is rounded, [B, H, T, D], f32, in the workspace; not in the deterministic graph.
    DqSum,
}

/// Virtual tensors are numbered from here on.
const FIRST_VIRTUAL: i64 = 100;

/// Every address is a multiple of this many bytes.
const ALIGNMENT: i64 = 16;

/// A tensor of the graph under construction: which descriptor, and its shape.
#[derive(Clone, Copy)]
struct Tensor {
    index: usize,
    dims: [i64; 4],
    strides: [i64; 4],
}

/// Operations in the order in which they were added, with all that they refer to.
pub(super) struct Nodes {
    cudnn: Arc<Cudnn>,
    /// What lies in memory: gives the strides of qkv, att, lse and their gradients.
    whole: AttentionDims,
    /// The sequences and heads that one execution covers: gives the lengths of axes.
    part: AttentionDims,
    tensors: Vec<Descriptor>,
    helpers: Vec<Descriptor>,
    operations: Vec<Descriptor>,
}

impl Nodes {
    /// att, lse from q, k, v.
    pub(super) fn forward(cudnn: &Arc<Cudnn>, dims: AttentionDims) -> Result<Self, CudaError> {
        let mut nodes = Self::empty(cudnn, dims, dims);
        let g = &mut nodes;
        let q = g.at_address(Id::Q, DataType::BF16, g.rows(dims.heads), g.packed())?;
        let k = g.at_address(Id::K, DataType::BF16, g.columns(dims.kv_heads), transposed(g.packed()))?;
        let v = g.at_address(Id::V, DataType::BF16, g.rows(dims.kv_heads), g.packed())?;
        let att = g.at_address(Id::Att, DataType::BF16, g.rows(dims.heads), g.token_major())?;
        let lse = g.at_address(Id::Lse, DataType::F32, g.row_dims(), row_strides(&g.whole))?;

        let scale = g.by_value(Id::Scale)?;
        let scores = g.scaled_scores(q, k, scale)?;
        let scores = g.masked(scores)?;
        let largest = g.row_value()?;
        g.reduce(ReductionOperator::MAX, scores, largest)?;
        let shifted = g.binary(PointwiseMode::SUB, scores, largest)?;
        let exponentials = g.unary(PointwiseMode::EXP, shifted)?;
        let sum = g.row_value()?;
        g.reduce(ReductionOperator::ADD, exponentials, sum)?;
        let logarithm = g.unary(PointwiseMode::LOG, sum)?;
        g.pointwise(PointwiseMode::ADD, &[largest, logarithm], lse)?;
        let probabilities = g.virtual_like(DataType::BF16, scores)?;
        g.pointwise(PointwiseMode::DIV, &[exponentials, sum], probabilities)?;
        g.matmul(probabilities, v, att)?;
        Ok(nodes)
    }

    /// dq, dk, dv from q, k, v, att, lse, datt, for `part` of the sequences and kv heads of `whole`.
    ///
    /// `deterministic` writes dq as one matrix product, for which cuDNN keeps all the scores' gradients;
    /// otherwise dq is summed up in f32 by atomic additions, in whatever order blocks arrive.
    pub(super) fn backward(
        cudnn: &Arc<Cudnn>,
        whole: AttentionDims,
        part: AttentionDims,
        deterministic: bool,
    ) -> Result<Self, CudaError> {
        let mut nodes = Self::empty(cudnn, whole, part);
        let g = &mut nodes;
        let q = g.at_address(Id::Q, DataType::BF16, g.rows(part.heads), g.packed())?;
        let k = g.at_address(Id::K, DataType::BF16, g.columns(part.kv_heads), transposed(g.packed()))?;
        let v = g.at_address(Id::V, DataType::BF16, g.columns(part.kv_heads), transposed(g.packed()))?;
        let att = g.at_address(Id::Att, DataType::BF16, g.rows(part.heads), g.token_major())?;
        let datt = g.at_address(Id::Datt, DataType::BF16, g.rows(part.heads), g.token_major())?;
        let lse = g.at_address(Id::Lse, DataType::F32, g.row_dims(), row_strides(&g.whole))?;
        let dq = g.at_address(Id::Dq, DataType::BF16, g.rows(part.heads), g.packed())?;
        let dk = g.at_address(Id::Dk, DataType::BF16, g.rows(part.kv_heads), g.packed())?;
        let dv = g.at_address(Id::Dv, DataType::BF16, g.rows(part.kv_heads), g.packed())?;

        let row_sum = g.row_sum(datt, att)?;
        let scale = g.by_value(Id::Scale)?;
        let scores = g.scaled_scores(q, k, scale)?;
        let scores = g.binary(PointwiseMode::SUB, scores, lse)?;
        let scores = g.masked(scores)?;
        let probabilities = g.unary(PointwiseMode::EXP, scores)?;
        let seen = g.view_transposed(probabilities)?;
        g.matmul_per_kv_head(seen, datt, dv)?;

        let dprobabilities = g.scores()?;
        g.matmul(datt, v, dprobabilities)?;
        let centred = g.binary(PointwiseMode::SUB, dprobabilities, row_sum)?;
        let dscores = g.binary(PointwiseMode::MUL, centred, probabilities)?;
        let dscores = g.binary(PointwiseMode::MUL, dscores, scale)?;
        let seen = g.view_transposed(dscores)?;
        g.matmul_per_kv_head(seen, q, dk)?;

        let keys = g.virtual_tensor(DataType::BF16, g.rows(part.kv_heads), g.packed())?;
        g.reshape(k, keys)?;
        if deterministic {
            g.matmul(dscores, keys, dq)?;
        } else {
            let sum = g.at_address(Id::DqSum, DataType::F32, g.rows(part.heads), g.head_major())?;
            g.matmul(dscores, keys, sum)?;
            g.pointwise(PointwiseMode::IDENTITY, &[sum], dq)?;
        }
        Ok(nodes)
    }

    /// The operations, to be put into a graph.
    pub(super) fn operations(&self) -> &[Descriptor] {
        &self.operations
    }

    fn empty(cudnn: &Arc<Cudnn>, whole: AttentionDims, part: AttentionDims) -> Self {
        Self { cudnn: Arc::clone(cudnn), whole, part, tensors: Vec::new(), helpers: Vec::new(), operations: Vec::new() }
    }

    // Shapes, [batch, heads, rows, columns], and strides.

    /// [B, heads, T, D]: a row per token.
    fn rows(&self, heads: usize) -> [i64; 4] {
        let d = &self.part;
        [d.batch as i64, heads as i64, d.context as i64, d.head_size as i64]
    }

    /// [B, heads, D, T]: a column per token.
    fn columns(&self, heads: usize) -> [i64; 4] {
        transposed(self.rows(heads))
    }

    /// [B, H, T, 1]: one value per row of scores.
    fn row_dims(&self) -> [i64; 4] {
        [self.part.batch as i64, self.part.heads as i64, self.part.context as i64, 1]
    }

    /// Strides of [B, heads, T, D] in memory ordered [B, T, H + 2K, D].
    fn packed(&self) -> [i64; 4] {
        interleaved(&self.whole, self.whole.packed_heads())
    }

    /// Strides of [B, H, T, D] in memory ordered [B, T, H, D].
    fn token_major(&self) -> [i64; 4] {
        interleaved(&self.whole, self.whole.heads)
    }

    /// Strides of [B, H, T, D] in memory of that order, without gaps.
    fn head_major(&self) -> [i64; 4] {
        let [_, heads, context, size] = self.rows(self.part.heads);
        [heads * context * size, context * size, size, 1]
    }

    // Tensors.

    /// A tensor whose address a variant pack gives.
    fn at_address(&mut self, id: Id, data: DataType, dims: [i64; 4], strides: [i64; 4]) -> Result<Tensor, CudaError> {
        self.tensor(id as i64, data, dims, strides, None)
    }

    /// One f32 on the host.
    fn by_value(&mut self, id: Id) -> Result<Tensor, CudaError> {
        self.tensor(id as i64, DataType::F32, [1; 4], [1; 4], Some(Attribute::TENSOR_IS_BY_VALUE))
    }

    /// A tensor that never reaches memory.
    fn virtual_tensor(&mut self, data: DataType, dims: [i64; 4], strides: [i64; 4]) -> Result<Tensor, CudaError> {
        let unique = FIRST_VIRTUAL + self.tensors.len() as i64;
        self.tensor(unique, data, dims, strides, Some(Attribute::TENSOR_IS_VIRTUAL))
    }

    /// A virtual tensor of the shape of another.
    fn virtual_like(&mut self, data: DataType, other: Tensor) -> Result<Tensor, CudaError> {
        self.virtual_tensor(data, other.dims, other.strides)
    }

    /// A virtual f32 [B, H, T, T].
    fn scores(&mut self) -> Result<Tensor, CudaError> {
        let [batch, heads, context, _] = self.row_dims();
        let strides = [heads * context * context, context * context, context, 1];
        self.virtual_tensor(DataType::F32, [batch, heads, context, context], strides)
    }

    /// A virtual f32 [B, H, T, 1].
    fn row_value(&mut self) -> Result<Tensor, CudaError> {
        self.virtual_tensor(DataType::F32, self.row_dims(), row_strides(&self.part))
    }

    fn tensor(
        &mut self,
        unique: i64,
        data: DataType,
        dims: [i64; 4],
        strides: [i64; 4],
        property: Option<Attribute>,
    ) -> Result<Tensor, CudaError> {
        let mut made = Descriptor::new(&self.cudnn, Kind::TENSOR)?;
        made.set(Attribute::TENSOR_UNIQUE_ID, &[unique])?
            .set(Attribute::TENSOR_DATA_TYPE, &[data])?
            .set(Attribute::TENSOR_DIMENSIONS, &dims)?
            .set(Attribute::TENSOR_STRIDES, &strides)?
            .set(Attribute::TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?;
        if let Some(property) = property {
            made.set(property, &[true])?;
        }
        made.finalize()?;
        self.tensors.push(made);
        Ok(Tensor { index: self.tensors.len() - 1, dims, strides })
    }

    // Groups of operations.

    /// q · kᵀ · scale, f32 [B, H, T, T].
    fn scaled_scores(&mut self, q: Tensor, k: Tensor, scale: Tensor) -> Result<Tensor, CudaError> {
        let products = self.scores()?;
        self.matmul(q, k, products)?;
        self.binary(PointwiseMode::MUL, products, scale)
    }

    /// `scores` where the row is at or after the column, else −∞.
    fn masked(&mut self, scores: Tensor) -> Result<Tensor, CudaError> {
        let row = self.index(2, scores)?;
        let column = self.index(3, scores)?;
        let seen = self.virtual_like(DataType::BOOL, scores)?;
        self.pointwise(PointwiseMode::CMP_GE, &[row, column], seen)?;
        let value = self.by_value(Id::Masked)?;
        let masked = self.virtual_like(DataType::F32, scores)?;
        self.pointwise(PointwiseMode::BINARY_SELECT, &[scores, value, seen], masked)?;
        Ok(masked)
    }

    /// Σ over D of datt · att, in the workspace. The pattern has a factor for dropout, here 1.
    fn row_sum(&mut self, datt: Tensor, att: Tensor) -> Result<Tensor, CudaError> {
        let products = self.virtual_tensor(DataType::F32, datt.dims, self.token_major())?;
        self.pointwise(PointwiseMode::MUL, &[datt, att], products)?;
        let sum = self.row_value()?;
        self.reduce(ReductionOperator::ADD, products, sum)?;
        let one = self.by_value(Id::One)?;
        let row_sum = self.at_address(Id::RowSum, DataType::F32, self.row_dims(), row_strides(&self.part))?;
        self.pointwise(PointwiseMode::MUL, &[sum, one], row_sum)?;
        Ok(row_sum)
    }

    /// `of`[B, H, T, T] with rows and columns exchanged, as bf16.
    fn view_transposed(&mut self, of: Tensor) -> Result<Tensor, CudaError> {
        let view = self.virtual_tensor(DataType::BF16, transposed(of.dims), transposed(of.strides))?;
        self.reshape(of, view)?;
        Ok(view)
    }

    /// c[B, K, T, D] = Σ over the heads that share a kv head of a[B, H, T, T] · b[B, H, T, D].
    fn matmul_per_kv_head(&mut self, a: Tensor, b: Tensor, c: Tensor) -> Result<(), CudaError> {
        if self.part.heads == self.part.kv_heads {
            return self.matmul(a, b, c);
        }
        let per_head = self.virtual_tensor(DataType::BF16, self.rows(self.part.heads), self.head_major())?;
        self.matmul(a, b, per_head)?;
        self.reduce(ReductionOperator::ADD, per_head, c)
    }

    // Single operations.

    /// The index along `axis` of an element of `like`, I32.
    fn index(&mut self, axis: i64, like: Tensor) -> Result<Tensor, CudaError> {
        let index = self.virtual_like(DataType::I32, like)?;
        let function = self.function(PointwiseMode::GEN_INDEX, DataType::F32, Some(axis))?;
        self.apply(function, &[like], index)?;
        Ok(index)
    }

    /// A virtual f32 of x's shape: f(x).
    fn unary(&mut self, mode: PointwiseMode, x: Tensor) -> Result<Tensor, CudaError> {
        let y = self.virtual_like(DataType::F32, x)?;
        self.pointwise(mode, &[x], y)?;
        Ok(y)
    }

    /// A virtual f32 of x's shape: f(x, b), b repeated along axes of length 1.
    fn binary(&mut self, mode: PointwiseMode, x: Tensor, b: Tensor) -> Result<Tensor, CudaError> {
        let y = self.virtual_like(DataType::F32, x)?;
        self.pointwise(mode, &[x, b], y)?;
        Ok(y)
    }

    /// y = f(inputs), point by point, computed in f32; a comparison in truth values.
    fn pointwise(&mut self, mode: PointwiseMode, inputs: &[Tensor], y: Tensor) -> Result<(), CudaError> {
        let precision = if mode == PointwiseMode::CMP_GE { DataType::BOOL } else { DataType::F32 };
        let function = self.function(mode, precision, None)?;
        self.apply(function, inputs, y)
    }

    /// A function of a pointwise operation.
    fn function(
        &mut self,
        mode: PointwiseMode,
        precision: DataType,
        axis: Option<i64>,
    ) -> Result<Descriptor, CudaError> {
        let mut function = Descriptor::new(&self.cudnn, Kind::POINTWISE)?;
        function.set(Attribute::POINTWISE_MODE, &[mode])?.set(Attribute::POINTWISE_MATH_PREC, &[precision])?;
        if let Some(axis) = axis {
            function.set(Attribute::POINTWISE_AXIS, &[axis])?;
        }
        function.finalize()?;
        Ok(function)
    }

    fn apply(&mut self, function: Descriptor, inputs: &[Tensor], y: Tensor) -> Result<(), CudaError> {
        const INPUTS: [Attribute; 3] = [
            Attribute::OPERATION_POINTWISE_XDESC,
            Attribute::OPERATION_POINTWISE_BDESC,
            Attribute::OPERATION_POINTWISE_TDESC,
        ];
        let mut ends: Vec<_> = INPUTS.into_iter().zip(inputs.iter().copied()).collect();
        ends.push((Attribute::OPERATION_POINTWISE_YDESC, y));
        self.operation(Kind::POINTWISE_OPERATION, Some((Attribute::OPERATION_POINTWISE_PW_DESCRIPTOR, function)), &ends)
    }

    /// c = a · b for each batch and head; a head of b that several of a share is repeated.
    fn matmul(&mut self, a: Tensor, b: Tensor, c: Tensor) -> Result<(), CudaError> {
        let mut product = Descriptor::new(&self.cudnn, Kind::MATMUL)?;
        product.set(Attribute::MATMUL_COMP_TYPE, &[DataType::F32])?.finalize()?;
        self.operation(
            Kind::MATMUL_OPERATION,
            Some((Attribute::OPERATION_MATMUL_DESC, product)),
            &[
                (Attribute::OPERATION_MATMUL_ADESC, a),
                (Attribute::OPERATION_MATMUL_BDESC, b),
                (Attribute::OPERATION_MATMUL_CDESC, c),
            ],
        )
    }

    /// y = x reduced along the axes on which y is shorter.
    fn reduce(&mut self, operator: ReductionOperator, x: Tensor, y: Tensor) -> Result<(), CudaError> {
        let mut reduction = Descriptor::new(&self.cudnn, Kind::REDUCTION)?;
        reduction
            .set(Attribute::REDUCTION_OPERATOR, &[operator])?
            .set(Attribute::REDUCTION_COMP_TYPE, &[DataType::F32])?
            .finalize()?;
        self.operation(
            Kind::REDUCTION_OPERATION,
            Some((Attribute::OPERATION_REDUCTION_DESC, reduction)),
            &[(Attribute::OPERATION_REDUCTION_XDESC, x), (Attribute::OPERATION_REDUCTION_YDESC, y)],
        )
    }

    /// y looks at x through its own shape and strides.
    fn reshape(&mut self, x: Tensor, y: Tensor) -> Result<(), CudaError> {
        let ends = [(Attribute::OPERATION_RESHAPE_XDESC, x), (Attribute::OPERATION_RESHAPE_YDESC, y)];
        self.operation(Kind::RESHAPE_OPERATION, None, &ends)
    }

    /// Adds an operation: what it computes, and the tensors at its ends.
    fn operation(
        &mut self,
        kind: Kind,
        computes: Option<(Attribute, Descriptor)>,
        ends: &[(Attribute, Tensor)],
    ) -> Result<(), CudaError> {
        let mut operation = Descriptor::new(&self.cudnn, kind)?;
        if let Some((attribute, helper)) = computes {
            operation.set_descriptors(attribute, &[helper.raw()])?;
            self.helpers.push(helper);
        }
        for &(attribute, tensor) in ends {
            operation.set_descriptors(attribute, &[self.tensors[tensor.index].raw()])?;
        }
        operation.finalize()?;
        self.operations.push(operation);
        Ok(())
    }
}

/// Rows and columns exchanged.
fn transposed([batch, head, row, column]: [i64; 4]) -> [i64; 4] {
    [batch, head, column, row]
}

/// Strides of [B, heads, T, D] in memory ordered [B, T, all heads of a token, D].
fn interleaved(dims: &AttentionDims, heads_of_token: usize) -> [i64; 4] {
    let (size, token) = (dims.head_size as i64, (heads_of_token * dims.head_size) as i64);
    [dims.context as i64 * token, size, token, 1]
}

/// Strides of [B, H, T, 1] in memory ordered [B, H, T].
fn row_strides(dims: &AttentionDims) -> [i64; 4] {
    let (heads, context) = (dims.heads as i64, dims.context as i64);
    [heads * context, context, 1, 1]
}
