//! The operations once more, in f64 and written for reading: what the devices are tested against, and what finite
//! differences are taken of.

use crate::model::{Role, Shape};

use super::ops::{Gated, Heads, Linear, Logits, NORM_EPSILON, Norm, Sequences};

/// `y[N, O] = x[N, I] · weight[O, I]ᵀ`
pub(super) fn linear(dims: Linear, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let Linear { inputs, .. } = dims;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks(inputs).flat_map(|x| weight.chunks(inputs).map(move |weight| dot(x, weight))).collect()
}

/// `h[N, W] = x / √(mean(x²) + ε) · gain`
pub(super) fn norm(dims: Norm, x: &[f64], gain: &[f64]) -> Vec<f64> {
    let row = |x: &[f64]| {
        let rstd = rstd(x);
        x.iter().zip(gain).map(|(x, gain)| x * rstd * gain).collect::<Vec<_>>()
    };
    x.chunks(dims.width).flat_map(row).collect()
}

/// `1 / √(mean(x²) + ε)` of one row.
pub(super) fn rstd(x: &[f64]) -> f64 {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    1.0 / (mean + f64::from(NORM_EPSILON)).sqrt()
}

/// `[q[B, H, T, D], k[B, K, T, D], v[B, K, T, D]]` from `qkv[B, T, (H + 2K), D]`, angles computed afresh.
pub(super) fn rotary(dims: Heads, qkv: &[f64]) -> [Vec<f64>; 3] {
    let Heads { tokens, heads, kv_heads, head_size } = dims;
    let part = |first: usize, count: usize, turned: bool| {
        let mut out = Vec::new();
        for sequence in 0..tokens.batch {
            for head in first..first + count {
                for position in 0..tokens.context {
                    let row = (sequence * tokens.context + position) * dims.packed_width() + head * head_size;
                    let x = &qkv[row..row + head_size];
                    let angle = |pair: usize| position as f64 / 1e4_f64.powf(2.0 * pair as f64 / head_size as f64);
                    let half = head_size / 2;
                    out.extend((0..head_size).map(|index| match (turned, index < half) {
                        (false, _) => x[index],
                        (true, true) => x[index] * angle(index).cos() - x[index + half] * angle(index).sin(),
                        (true, false) => {
                            x[index] * angle(index - half).cos() + x[index - half] * angle(index - half).sin()
                        }
                    }));
                }
            }
        }
        out
    };
    [part(0, heads, true), part(heads, kv_heads, true), part(heads + kv_heads, kv_heads, false)]
}

/// `att[B, T, H, D]` and `lse[B, T, H]`.
pub(super) fn attention(dims: Heads, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Heads { tokens: Sequences { batch, context }, heads, kv_heads, head_size: size } = dims;
    let mut att = vec![0.0; batch * context * heads * size];
    let mut lse = vec![0.0; batch * context * heads];
    for token in 0..batch * context {
        let (sequence, query) = (token / context, token % context);
        for head in 0..heads {
            let q = &q[((sequence * heads + head) * context + query) * size..][..size];
            let shared = (sequence * kv_heads + head / dims.group()) * context;
            let score = |key: usize| {
                let k = &k[(shared + key) * size..][..size];
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (size as f64).sqrt()
            };
            let sum: f64 = (0..=query).map(|key| score(key).exp()).sum();
            lse[token * heads + head] = sum.ln();
            for key in 0..=query {
                for index in 0..size {
                    att[(token * heads + head) * size + index] +=
                        score(key).exp() / sum * v[(shared + key) * size + index];
                }
            }
        }
    }
    (att, lse)
}

/// `act[N, F] = gate · σ(gate) · up`
pub(super) fn swiglu(dims: Gated, gate_up: &[f64]) -> Vec<f64> {
    let act = |row: &[f64]| {
        let (gate, up) = row.split_at(dims.ffn);
        gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect::<Vec<_>>()
    };
    gate_up.chunks(2 * dims.ffn).flat_map(act).collect()
}

/// `losses[N] = ln Σ exp(logits) − logits[target]`
pub(super) fn losses(dims: Logits, logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let loss =
        |(row, &target): (&[f64], &u32)| row.iter().map(|value| value.exp()).sum::<f64>().ln() - row[target as usize];
    logits.chunks(dims.vocabulary).zip(targets).map(loss).collect()
}

/// The mean loss of the whole decoder; `weight` gives each parameter.
pub(super) fn decoder<'a>(
    shape: &Shape,
    tokens: Sequences,
    weight: impl Fn(Role) -> &'a [f64],
    inputs: &[u32],
    targets: &[u32],
) -> f64 {
    let Shape { layers, width, heads, kv_heads, ffn, vocabulary } = *shape;
    let rows = tokens.rows();
    let dims = Heads { tokens, heads, kv_heads, head_size: shape.head_size() };
    let norms = Norm { rows, width };
    let product = |x: &[f64], role, inputs, outputs| linear(Linear { rows, inputs, outputs }, x, weight(role));
    let add = |x: &mut [f64], branch: Vec<f64>| x.iter_mut().zip(branch).for_each(|(x, branch)| *x += branch);
    let table = weight(Role::Embedding);
    let mut x: Vec<f64> = inputs.iter().flat_map(|&id| table[id as usize * width..][..width].to_vec()).collect();
    for layer in 0..layers {
        let h = norm(norms, &x, weight(Role::AttentionNorm(layer)));
        let [q, k, v] = rotary(dims, &product(&h, Role::Qkv(layer), width, dims.packed_width()));
        let (att, _) = attention(dims, &q, &k, &v);
        add(&mut x, product(&att, Role::Out(layer), dims.width(), width));
        let h = norm(norms, &x, weight(Role::FfnNorm(layer)));
        let act = swiglu(Gated { rows, ffn }, &product(&h, Role::GateUp(layer), width, 2 * ffn));
        add(&mut x, product(&act, Role::Down(layer), ffn, width));
    }
    let h = norm(norms, &x, weight(Role::FinalNorm));
    let logits = product(&h, Role::Head, width, vocabulary);
    losses(Logits { rows, vocabulary }, &logits, targets).iter().sum::<f64>() / rows as f64
}

/// The gradient of `function` at `at` by central differences.
pub(super) fn differences(at: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut point = at.to_vec();
    let step = 1e-5;
    (0..at.len())
        .map(|index| {
            let mut value = |offset| {
                point[index] = at[index] + offset;
                function(&point)
            };
            let difference = value(step) - value(-step);
            point[index] = at[index];
            difference / (2.0 * step)
        })
        .collect()
}
