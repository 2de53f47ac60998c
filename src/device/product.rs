//! Matrix products in f32 on the host, checked.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

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
    let needed = match rows.checked_sub(1) {
        Some(before) if columns > 0 => before.checked_mul(stride).and_then(|start| start.checked_add(columns)),
        _ => Some(0),
    };
    assert!(columns <= stride || rows <= 1, "rows of {columns} elements overlap at a stride of {stride}");
    let fits = needed.is_some_and(|needed| needed <= len);
    assert!(fits, "a matrix of {rows} x {columns} at stride {stride} does not fit in {len} elements");
}

/// `dst = left · right`, or `dst += left · right` where `accumulate`. `threads` above 1 cuts the longer side of `dst`
/// into as many parts, for the rayon pool of the caller. Each element is summed by one thread in one order: the
/// result depends neither on scheduling nor on the number of threads.
///
/// # Panics
/// If the inner sizes differ: a bug of the caller.
pub fn multiply(dst: MatrixMut<'_>, accumulate: bool, left: Matrix<'_>, right: Matrix<'_>, threads: usize) {
    assert_eq!(left.columns, right.rows, "inner sizes of a matrix product");
    assert_eq!((dst.rows, dst.columns), (left.rows, right.columns), "outer sizes of a matrix product");
    let MatrixMut { data, rows, columns, stride } = dst;
    let target = Target { first: data.as_mut_ptr(), stride };
    let work = rows * columns * left.columns;
    if threads <= 1 || work < PARALLEL_MIN {
        let all = Part { rows: 0..rows, columns: 0..columns };
        // SAFETY: the part is the whole of `dst`, whose exclusive borrow lasts until this returns.
        unsafe { multiply_part(target, all, accumulate, left, right) };
        return;
    }
    let side = rows.max(columns);
    let size = side.div_ceil(threads).next_multiple_of(PART_STEP);
    (0..side.div_ceil(size)).into_par_iter().for_each(|index| {
        let range = index * size..side.min((index + 1) * size);
        let part = if columns <= rows {
            Part { rows: range, columns: 0..columns }
        } else {
            Part { rows: 0..rows, columns: range }
        };
        // SAFETY: ranges of different indices do not overlap, so no two threads write one element; `for_each` returns
        // after the last of them, within the exclusive borrow of `dst`.
        unsafe { multiply_part(target, part, accumulate, left, right) };
    });
}

/// Multiplications below which waking a second thread costs more than it saves.
const PARALLEL_MIN: usize = 64 * 64 * 64;

/// Parts end at a multiple of this, so that only the last has incomplete tiles: the tiles of the AVX2 kernel are 16 by
/// 6, those of AVX-512 are 32 by 6.
const PART_STEP: usize = 96;

/// Where the first element of a product goes, and how far apart its rows are.
#[derive(Clone, Copy)]
struct Target {
    first: *mut f32,
    stride: usize,
}

// SAFETY: a Target is only an address; whoever writes through it promises, by calling the unsafe `multiply_part`, that
// its part is no other thread's.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

/// The rows and columns of a product that one thread computes.
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Computes one part of `left · right` on this thread.
///
/// # Safety
/// `target` must be the first element of a matrix as large as the product, checked by [`check`], which outlives the
/// call; no other thread reads or writes the part meanwhile. `part` lies within the product.
unsafe fn multiply_part(target: Target, part: Part, accumulate: bool, left: Matrix<'_>, right: Matrix<'_>) {
    let (rows, columns) = (part.rows.len(), part.columns.len());
    if rows == 0 || columns == 0 {
        return;
    }
    let left_first = part.rows.start * left.row_stride;
    let right_first = part.columns.start * right.column_stride;
    // SAFETY: gemm reads the rows of `left` and the columns of `right` that belong to the part, over their common inner
    // size, and writes the part of the target, all at the strides given. `check` has proved for each of the three
    // matrices that its last element lies inside its slice, a transposed matrix names the same elements, and a part
    // lies within them (no inner size at all reads nothing, and wrapping_add computes but does not use the address).
    // The borrows of `left` and `right` outlive the call; the caller vouches for the target. With `read_dst` false, the
    // target is written without being read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            left.columns,
            target.first.wrapping_add(part.rows.start * target.stride + part.columns.start),
            1,
            target.stride as isize,
            accumulate,
            left.data.as_ptr().wrapping_add(left_first),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr().wrapping_add(right_first),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
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
    fn products_of_small_integers_are_exact_in_every_layout_on_any_number_of_threads() {
        for (rows, columns, inner, threads) in [
            (1, 1, 1, 1),
            (3, 5, 7, 1),
            (17, 33, 9, 4),
            (64, 40, 65, 1),
            (130, 3, 2, 1),
            (205, 40, 35, 2),
            (35, 301, 33, 3),
        ] {
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
                multiply(MatrixMut::rows(&mut dst, rows, columns, stride), accumulate, left, right, threads);
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
    fn a_matrix_whose_size_is_no_number_is_refused() {
        let _ = Matrix::rows(&[0.0; 11], (1 << 32) + 1, 4, 1 << 32);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_larger_than_its_memory_is_refused() {
        let data = [0.0; 11];
        let _ = Matrix::rows(&data, 3, 4, 4);
    }
}
