//! Rotary positions, with the change between token-major and head-major order: attention reads a head as one range.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::Heads;

use super::{PART, part_rows, room};

/// Which way a pair turns.
#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
}

/// In place, a sequence at a time: `[T, (H + 2K), D]` becomes `[(H + 2K), T, D]`, queries and keys turned.
pub(super) fn forward(dims: Heads, qkv: &mut [f32], turns: &[f32], scratch: &mut Vec<f32>) {
    let (context, size, stride) = (dims.tokens.context, dims.head_size, dims.packed_width());
    let turned = dims.heads + dims.kv_heads;
    for sequence in qkv[..dims.tokens.rows() * stride].chunks_exact_mut(context * stride) {
        let packed = copy(sequence, scratch);
        sequence.par_chunks_mut(context * size).enumerate().for_each(|(head, out)| {
            vectorised(
                #[inline(always)]
                || {
                    for (position, out) in out.chunks_exact_mut(size).enumerate() {
                        let x = &packed[position * stride + head * size..][..size];
                        if head < turned {
                            turn(out, x, &turns[position * size..][..size], Turn::Forward);
                        } else {
                            out.copy_from_slice(x);
                        }
                    }
                },
            );
        });
    }
}

/// The way back: `[(H + 2K), T, D]` becomes `[T, (H + 2K), D]`, queries and keys turned back.
pub(super) fn backward(dims: Heads, dqkv: &mut [f32], turns: &[f32], scratch: &mut Vec<f32>) {
    let (context, size, stride) = (dims.tokens.context, dims.head_size, dims.packed_width());
    let turned = dims.heads + dims.kv_heads;
    let part = part_rows(stride);
    for sequence in dqkv[..dims.tokens.rows() * stride].chunks_exact_mut(context * stride) {
        let by_head = copy(sequence, scratch);
        sequence.par_chunks_mut(part * stride).enumerate().for_each(|(index, rows)| {
            vectorised(
                #[inline(always)]
                || {
                    for (position, row) in (index * part..).zip(rows.chunks_exact_mut(stride)) {
                        let turns = &turns[position * size..][..size];
                        for (head, out) in row.chunks_exact_mut(size).enumerate() {
                            let x = &by_head[(head * context + position) * size..][..size];
                            if head < turned { turn(out, x, turns, Turn::Back) } else { out.copy_from_slice(x) }
                        }
                    }
                },
            );
        });
    }
}

/// A copy of `values` in `scratch`.
fn copy<'a>(values: &[f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
    let copied = room(scratch, values.len());
    copied.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
    copied
}

/// Turns the pairs `(x[i], x[i + D/2])` by the angles of one position, `turns[D]`.
#[inline(always)]
fn turn(out: &mut [f32], x: &[f32], turns: &[f32], way: Turn) {
    let sign = match way {
        Turn::Forward => 1.0,
        Turn::Back => -1.0,
    };
    let half = x.len() / 2;
    let (low, high) = out.split_at_mut(half);
    let (a, b) = x.split_at(half);
    let (cos, sin) = turns.split_at(half);
    turn_pairs([low, high], [a, b], [cos, sin], sign);
}

/// [`turn`] with its halves apart, all of one length.
#[inline(always)]
fn turn_pairs([low, high]: [&mut [f32]; 2], [a, b]: [&[f32]; 2], [cos, sin]: [&[f32]; 2], sign: f32) {
    let half = low.len();
    let (high, a, b, cos, sin) = (&mut high[..half], &a[..half], &b[..half], &cos[..half], &sin[..half]);
    for index in 0..half {
        let sin = sign * sin[index];
        low[index] = a[index] * cos[index] - b[index] * sin;
        high[index] = b[index] * cos[index] + a[index] * sin;
    }
}
