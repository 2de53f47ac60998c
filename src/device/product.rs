//! Matrix products in f32 on the host, checked.

use gemm::Parallelism;

/// A matrix in memory: element `(r, c)` lies at `r · row_stride + c · column_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `[rows, columns]`, a row after the other, `stride` elements from one row to the next.
    ///
    /// # Panics
    /// If `data` does not hold that much, or rows overlap: a bug of the caller.
    #[must_use]
    pub fn rows(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same memory read as `[columns, rows]`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// A matrix `[rows, columns]` that is written, a row after the other.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `[rows, columns]`, a row after the other, `stride` elements from one row to the next.
    ///
    /// # Panics
    /// If `data` does not hold that much, or rows overlap: a bug of the caller.
    #[must_use]
    pub fn rows(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data, rows, columns, stride }
    }
}

/// Panics unless `len` elements hold `rows` rows of `columns` elements, `stride` apart, without overlap.
fn check(len: usize, rows: usize, columns: usize, stride: usize) {
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
    assert!(columns <= stride || rows <= 1, "rows of {columns} elements overlap at a stride of {stride}");
    assert!(needed <= len, "a matrix of {rows} x {columns} at stride {stride} does not fit in {len} elements");
}

/// `dst = left · right`, or `dst += left · right` where `accumulate`. `threads` above 1 uses the rayon pool of the
/// caller. Each element is summed by one thread in one order: the result does not depend on scheduling.
///
/// # Panics
/// If the inner sizes differ: a bug of the caller.
pub fn multiply(dst: MatrixMut<'_>, accumulate: bool, left: Matrix<'_>, right: Matrix<'_>, threads: usize) {
    assert_eq!(left.columns, right.rows, "inner sizes of a matrix product");
    assert_eq!((dst.rows, dst.columns), (left.rows, right.columns), "outer sizes of a matrix product");
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: gemm reads `left` and `right` and writes `dst` only at (r, c) within the sizes given, at the strides
    // given. `check` has proved for each of the three that the last such element lies inside its slice, and a
    // transposed matrix names the same elements. The exclusive borrow of `dst` keeps it apart from the operands and
    // its rows do not overlap; all three borrows outlive the call, which returns after its threads are done. With
    // `read_dst` false, `dst` is written without being read.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.columns,
            left.columns,
            dst.data.as_mut_ptr(),
            1,
            dst.stride as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: every sum is exact.
    fn pattern(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|index| ((index * step) % 7) as f32 - 3.0).collect()
    }

    #[test]
    fn products_of_small_integers_are_exact_in_every_layout() {
        for (rows, columns, inner) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 40, 65), (130, 3, 2)] {
            for (left_turned, right_turned, accumulate) in
                [(false, false, false), (false, true, true), (true, false, false), (true, true, true)]
            {
                let a = pattern(rows * inner, 3);
                let b = pattern(inner * columns, 5);
                let left_at = |r: usize, k: usize| if left_turned { a[k * rows + r] } else { a[r * inner + k] };
                let right_at = |k: usize, c: usize| if right_turned { b[c * inner + k] } else { b[k * columns + c] };
                let left = if left_turned {
                    Matrix::rows(&a, inner, rows, rows).transposed()
                } else {
                    Matrix::rows(&a, rows, inner, inner)
                };
                let right = if right_turned {
                    Matrix::rows(&b, columns, inner, inner).transposed()
                } else {
                    Matrix::rows(&b, inner, columns, columns)
                };
                let stride = columns + 2;
                let start = if accumulate { 2.0 } else { f32::NAN };
                let mut dst = vec![start; rows * stride];
                multiply(MatrixMut::rows(&mut dst, rows, columns, stride), accumulate, left, right, 1);
                for r in 0..rows {
                    for c in 0..columns {
                        let sum: f32 = (0..inner).map(|k| left_at(r, k) * right_at(k, c)).sum();
                        assert_eq!(dst[r * stride + c], sum + if accumulate { 2.0 } else { 0.0 }, "({r}, {c})");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_larger_than_its_memory_is_refused() {
        let data = [0.0; 11];
        let _ = Matrix::rows(&data, 3, 4, 4);
    }
}
