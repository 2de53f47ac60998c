//! Token embedding.

use rayon::prelude::*;

use crate::train::ops::{Lookup, Write};

use super::part_rows;

/// `x[N, W] = table[ids[N], W]`.
pub(super) fn forward(dims: Lookup, x: &mut [f32], table: &[f32], ids: &[u32]) {
    let Lookup { rows, width, .. } = dims;
    let part = part_rows(width);
    x[..rows * width].par_chunks_mut(part * width).zip(ids[..rows].par_chunks(part)).for_each(|(x, ids)| {
        for (row, &id) in x.chunks_mut(width).zip(ids) {
            row.copy_from_slice(&table[id as usize * width..][..width]);
        }
    });
}

/// `dtable[ids[N], W] += dx[N, W]`. Each task owns a range of the table and looks through all ids for its own.
pub(super) fn backward(dims: Lookup, dtable: &mut [f32], write: Write, dx: &[f32], ids: &[u32]) {
    let Lookup { rows, vocabulary, width } = dims;
    let owned = part_rows(width).max(vocabulary.div_ceil(64));
    dtable[..vocabulary * width].par_chunks_mut(owned * width).enumerate().for_each(|(part, dtable)| {
        if write == Write::Overwrite {
            dtable.fill(0.0);
        }
        let first = part * owned;
        for (&id, gradient) in ids[..rows].iter().zip(dx.chunks(width)) {
            if let Some(entry) = (id as usize).checked_sub(first).filter(|entry| *entry < owned) {
                for (sum, term) in dtable[entry * width..][..width].iter_mut().zip(gradient) {
                    *sum += term;
                }
            }
        }
    });
}
