//! Causal attention in tiles of query rows; scores live only within a tile.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::device::{Matrix, MatrixMut, multiply, vectorised};
use crate::train::ops::Heads;

use super::math::{exp_in_place, max, sum2};
use super::with_tile;

/// Query rows of a tile.
const TILE_ROWS: usize = 64;

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    /// `datt[B, T, H, D]`
    pub(super) datt: &'a [f32],
    /// `att[B, T, H, D]`
    pub(super) att: &'a [f32],
    /// `lse[B, T, H]`
    pub(super) lse: &'a [f32],
    /// `qkv[B, (H + 2K), T, D]`
    pub(super) qkv: &'a [f32],
}

/// Where the heads of one sequence begin: `(H + 2K)` ranges of `[T, D]`, queries before keys before values.
fn head_of(qkv: &[f32], dims: Heads, sequence: usize, head: usize) -> &[f32] {
    let per_head = dims.tokens.context * dims.head_size;
    &qkv[(sequence * (dims.heads + 2 * dims.kv_heads) + head) * per_head..][..per_head]
}

/// Rows `first..first + rows` of the queries of one head, which see keys `0..first + rows`.
#[derive(Clone, Copy)]
struct Tile {
    first: usize,
    rows: usize,
}

impl Tile {
    /// Keys that any row of the tile sees.
    fn keys(self) -> usize {
        self.first + self.rows
    }
}

/// `att[B, T, H, D]` and `lse[B, T, H]`. A task is a tile of rows of one sequence, all heads.
pub(super) fn forward(dims: Heads, att: &mut [f32], lse: &mut [f32], qkv: &[f32], tiles: &[Mutex<Vec<f32>>]) {
    let (batch, context) = (dims.tokens.batch, dims.tokens.context);
    let (heads, size, width) = (dims.heads, dims.head_size, dims.width());
    let sequences = att[..batch * context * width].par_chunks_mut(context * width);
    sequences.zip(lse.par_chunks_mut(context * heads)).enumerate().for_each(|(sequence, (att, lse))| {
        let parts = att.par_chunks_mut(TILE_ROWS * width).zip(lse.par_chunks_mut(TILE_ROWS * heads));
        parts.enumerate().for_each(|(index, (att, lse))| {
            let tile = Tile { first: index * TILE_ROWS, rows: lse.len() / heads };
            with_tile(tiles, tile.rows * tile.keys(), |scores| {
                for head in 0..heads {
                    let q = head_of(qkv, dims, sequence, head);
                    let k = head_of(qkv, dims, sequence, heads + head / dims.group());
                    let v = head_of(qkv, dims, sequence, heads + dims.kv_heads + head / dims.group());
                    score(tile, size, scores, q, k);
                    softmax(tile, size, scores, &mut lse[head..], heads);
                    let probabilities = Matrix::rows(scores, tile.rows, tile.keys(), tile.keys());
                    let values = Matrix::rows(v, tile.keys(), size, size);
                    let att = MatrixMut::rows(&mut att[head * size..], tile.rows, size, width);
                    multiply(att, false, probabilities, values, 1);
                }
            });
        });
    });
}

/// `scores[rows, keys] = q[rows, D] · k[keys, D]ᵀ`, not yet scaled.
fn score(tile: Tile, size: usize, scores: &mut [f32], q: &[f32], k: &[f32]) {
    let q = Matrix::rows(&q[tile.first * size..], tile.rows, size, size);
    let k = Matrix::rows(k, tile.keys(), size, size);
    multiply(MatrixMut::rows(scores, tile.rows, tile.keys(), tile.keys()), false, q, k.transposed(), 1);
}

/// Scores to probabilities in place, zero where the key is after the query; `lse` of row `i` at `i · stride`.
fn softmax(tile: Tile, size: usize, scores: &mut [f32], lse: &mut [f32], stride: usize) {
    let scale = 1.0 / (size as f32).sqrt();
    vectorised(
        #[inline(always)]
        || {
            for (row, scores) in scores.chunks_exact_mut(tile.keys()).enumerate() {
                let (seen, hidden) = scores.split_at_mut(tile.first + row + 1);
                let shift = scale * max(seen);
                let sum = exp_in_place(seen, scale, shift);
                let inverse = 1.0 / sum;
                seen.iter_mut().for_each(|value| *value *= inverse);
                hidden.fill(0.0);
                lse[row * stride] = shift + sum.ln();
            }
        },
    );
}

/// `dqkv[B, (H + 2K), T, D]`. A task is one key and value head of one sequence with the query heads that share it, so
/// that its sums have one order.
pub(super) fn backward(dims: Heads, dqkv: &mut [f32], saved: Saved<'_>, tiles: &[Mutex<Vec<f32>>]) {
    let per_head = dims.tokens.context * dims.head_size;
    let per_sequence = dims.tokens.context * dims.packed_width();
    let sequences = dqkv[..dims.tokens.batch * per_sequence].par_chunks_mut(per_sequence);
    sequences.enumerate().for_each(|(sequence, dqkv)| {
        let (dq, rest) = dqkv.split_at_mut(dims.heads * per_head);
        let (dk, dv) = rest.split_at_mut(dims.kv_heads * per_head);
        let parts = dq.par_chunks_mut(dims.group() * per_head).zip(dk.par_chunks_mut(per_head));
        parts.zip(dv.par_chunks_mut(per_head)).enumerate().for_each(|(shared, ((dq, dk), dv))| {
            let tile_len = TILE_ROWS.min(dims.tokens.context) * dims.tokens.context;
            with_tile(tiles, 2 * tile_len, |tile| {
                let (scores, gradients) = tile.split_at_mut(tile_len);
                for (member, dq) in dq.chunks_exact_mut(per_head).enumerate() {
                    let which = (sequence, shared, member);
                    backward_head(dims, which, [dq, dk, dv], saved, [scores, gradients]);
                }
            });
        });
    });
}

/// One query head; tiles run from the last, which sees every key and so writes all of `dk` and `dv` first.
fn backward_head(
    dims: Heads,
    (sequence, shared, member): (usize, usize, usize),
    [dq, dk, dv]: [&mut [f32]; 3],
    saved: Saved<'_>,
    [scores, gradients]: [&mut [f32]; 2],
) {
    let (context, heads, size, width) = (dims.tokens.context, dims.heads, dims.head_size, dims.width());
    let head = shared * dims.group() + member;
    let q = head_of(saved.qkv, dims, sequence, head);
    let k = head_of(saved.qkv, dims, sequence, heads + shared);
    let v = head_of(saved.qkv, dims, sequence, heads + dims.kv_heads + shared);
    for index in (0..context.div_ceil(TILE_ROWS)).rev() {
        let first = index * TILE_ROWS;
        let tile = Tile { first, rows: TILE_ROWS.min(context - first) };
        let (rows, keys) = (tile.rows, tile.keys());
        let add = member > 0 || keys < context;
        let token = sequence * context + first;
        let at = token * width + head * size;
        let datt = Matrix::rows(&saved.datt[at..], rows, size, width);
        let (scores, gradients) = (&mut scores[..rows * keys], &mut gradients[..rows * keys]);

        score(tile, size, scores, q, k);
        multiply(
            MatrixMut::rows(gradients, rows, keys, keys),
            false,
            datt,
            Matrix::rows(v, keys, size, size).transposed(),
            1,
        );
        let row_sums = RowSums { datt: &saved.datt[at..], att: &saved.att[at..], width };
        softmax_backward(tile, size, [scores, gradients], &saved.lse[token * heads + head..], heads, row_sums);

        let probabilities = Matrix::rows(scores, rows, keys, keys);
        multiply(MatrixMut::rows(dv, keys, size, size), add, probabilities.transposed(), datt, 1);
        let gradients = Matrix::rows(gradients, rows, keys, keys);
        let q = Matrix::rows(&q[first * size..], rows, size, size);
        multiply(MatrixMut::rows(dk, keys, size, size), add, gradients.transposed(), q, 1);
        let k = Matrix::rows(k, keys, size, size);
        multiply(MatrixMut::rows(&mut dq[first * size..], rows, size, size), false, gradients, k, 1);
    }
}

/// `Σ_D datt · att` for each row: what the softmax subtracts from the gradient of its row.
#[derive(Clone, Copy)]
struct RowSums<'a> {
    datt: &'a [f32],
    att: &'a [f32],
    width: usize,
}

/// Scores to probabilities `p`, and the gradients of the probabilities to those of the unscaled scores:
/// `p · (dp − Σ datt·att) / √D`; both zero where the key is after the query.
fn softmax_backward(
    tile: Tile,
    size: usize,
    [scores, gradients]: [&mut [f32]; 2],
    lse: &[f32],
    stride: usize,
    rows: RowSums<'_>,
) {
    let scale = 1.0 / (size as f32).sqrt();
    let keys = tile.keys();
    vectorised(
        #[inline(always)]
        || {
            for (row, (p, dp)) in scores.chunks_exact_mut(keys).zip(gradients.chunks_exact_mut(keys)).enumerate() {
                let at = row * rows.width;
                let sum = sum2(&rows.datt[at..at + size], &rows.att[at..at + size], |a, b| a * b);
                let (p, p_hidden) = p.split_at_mut(tile.first + row + 1);
                let (dp, dp_hidden) = dp.split_at_mut(tile.first + row + 1);
                exp_in_place(p, scale, lse[row * stride]);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = *p * (*dp - sum) * scale;
                }
                p_hidden.fill(0.0);
                dp_hidden.fill(0.0);
            }
        },
    );
}
