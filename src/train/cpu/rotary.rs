//! Rotary positions, with the change between token-major and head-major order.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::Heads;

use super::part_rows;

/// Which way a pair turns.
#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
}

/// `qkv[B, T, (H + 2K), D]` to `q[B, H, T, D]`, `k[B, K, T, D]`, `v[B, K, T, D]`.
pub(super) fn forward(dims: Heads, [q, k, v]: [&mut [f32]; 3], qkv: &[f32], turns: &[f32]) {
    let Heads { heads, kv_heads, .. } = dims;
    gather(dims, q, heads, 0, qkv, Some(turns));
    gather(dims, k, kv_heads, heads, qkv, Some(turns));
    gather(dims, v, kv_heads, heads + kv_heads, qkv, None);
}

/// `count` heads from the packed head `first` on, turned if there are `turns`.
fn gather(dims: Heads, out: &mut [f32], count: usize, first: usize, qkv: &[f32], turns: Option<&[f32]>) {
    let (context, size, stride) = (dims.tokens.context, dims.head_size, dims.packed_width());
    let all = dims.tokens.batch * count * context * size;
    out[..all].par_chunks_mut(context * size).enumerate().for_each(|(index, out)| {
        let (sequence, head) = (index / count, index % count);
        vectorised(
            #[inline(always)]
            || {
                for (position, out) in out.chunks_exact_mut(size).enumerate() {
                    let at = (sequence * context + position) * stride + (first + head) * size;
                    match turns {
                        Some(turns) => turn(out, &qkv[at..at + size], &turns[position * size..][..size], Turn::Forward),
                        None => out.copy_from_slice(&qkv[at..at + size]),
                    }
                }
            },
        );
    });
}

/// `dq`, `dk`, `dv` back to `dqkv[B, T, (H + 2K), D]`.
pub(super) fn backward(dims: Heads, dqkv: &mut [f32], [dq, dk, dv]: [&[f32]; 3], turns: &[f32]) {
    let Heads { tokens, heads, kv_heads, head_size: size } = dims;
    let (context, stride) = (tokens.context, dims.packed_width());
    let part = part_rows(stride);
    dqkv[..tokens.rows() * stride].par_chunks_mut(part * stride).enumerate().for_each(|(index, rows)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, packed) in (index * part..).zip(rows.chunks_exact_mut(stride)) {
                    let (sequence, position) = (row / context, row % context);
                    let turns = &turns[position * size..][..size];
                    let from = |src, count, head| head_row(src, count, (sequence, head, position), context, size);
                    for (head, out) in packed.chunks_exact_mut(size).enumerate() {
                        if head < heads {
                            turn(out, from(dq, heads, head), turns, Turn::Back);
                        } else if head < heads + kv_heads {
                            turn(out, from(dk, kv_heads, head - heads), turns, Turn::Back);
                        } else {
                            out.copy_from_slice(from(dv, kv_heads, head - heads - kv_heads));
                        }
                    }
                }
            },
        );
    });
}

/// `src[B, count, T, D]` at `(sequence, head, position)`.
#[inline(always)]
fn head_row(src: &[f32], count: usize, at: (usize, usize, usize), context: usize, size: usize) -> &[f32] {
    let (sequence, head, position) = at;
    &src[((sequence * count + head) * context + position) * size..][..size]
}

/// Turns the pairs `(x[i], x[i + D/2])` by the angles of one position, `turns[D]`.
#[inline(always)]
fn turn(out: &mut [f32], x: &[f32], turns: &[f32], way: Turn) {
    let half = x.len() / 2;
    let (low, high) = out.split_at_mut(half);
    let (a, b) = x.split_at(half);
    let (cos, sin) = turns.split_at(half);
    let sign = match way {
        Turn::Forward => 1.0,
        Turn::Back => -1.0,
    };
    for index in 0..half {
        let sin = sign * sin[index];
        low[index] = a[index] * cos[index] - b[index] * sin;
        high[index] = b[index] * cos[index] + a[index] * sin;
    }
}
