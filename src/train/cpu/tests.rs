//! Every operation of the CPU device against the f64 reference, its gradient against finite differences of it.
//!
//! Destinations begin as NaN, and scratch memory holds NaN before each call: what is not written shows.

use crate::device::Floats;
use crate::train::ops::{
    AdamWUpdate, Attended, Gated, Heads, Linear, Logits, Lookup, NORM_EPSILON, Norm, Ops, Sequences, Write,
};
use crate::train::reference::{self, differences};
use crate::train::seed::{Purpose, generator, normal, uniform};
use crate::train::testing::close;

use super::{Cpu, HostTokens};

/// Tolerance of values: absolute and relative.
const VALUE: (f64, f64) = (2e-6, 2e-5);
/// Tolerance of gradients.
const GRADIENT: (f64, f64) = (5e-6, 1e-4);

/// A device with two threads whose scratch memory is full of NaN.
fn cpu() -> Cpu {
    let mut cpu = Cpu::new(2).unwrap();
    cpu.scratch.partial = vec![f32::NAN; 1 << 12];
    cpu.scratch.sequence = vec![f32::NAN; 1 << 12];
    cpu.scratch.partial64 = vec![f64::NAN; 1 << 8];
    cpu.scratch.tiles.iter_mut().for_each(|tile| *tile.get_mut().unwrap() = vec![f32::NAN; 1 << 16]);
    cpu
}

/// Normal numbers that depend on `stream` alone.
fn random(stream: u64, len: usize) -> Floats {
    let mut floats = Floats::zeros(len);
    normal(&mut generator(1, Purpose::Sample, stream), 1.0, &mut floats);
    floats
}

fn random_ids(stream: u64, len: usize, bound: usize) -> Box<[u32]> {
    let mut random = generator(2, Purpose::Sample, stream);
    (0..len).map(|_| (uniform(&mut random) * bound as f64) as u32).collect()
}

/// Tokens whose ids and targets are both `ids`.
fn tokens(ids: &[u32]) -> HostTokens {
    HostTokens { inputs: ids.into(), targets: ids.into() }
}

fn poisoned(len: usize) -> Floats {
    let mut floats = Floats::zeros(len);
    floats.fill(f32::NAN);
    floats
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

#[track_caller]
fn all_close(what: &str, got: &[f32], wanted: &[f64], (abs, rel): (f64, f64)) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (index, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        close(&format!("{what}[{index}]"), f64::from(got), wanted, abs, rel);
    }
}

#[test]
fn linear_and_both_of_its_gradients() {
    let mut cpu = cpu();
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (33, 17, 40), (64, 32, 96)] {
        let dims = Linear { rows, inputs, outputs };
        let (x, w, dy) = (random(0, rows * inputs), random(1, outputs * inputs), random(2, rows * outputs));
        let mut y = poisoned(rows * outputs);
        cpu.linear(dims, &mut y, &x, &w).unwrap();
        all_close("y", &y, &reference::linear(dims, &wide(&x), &wide(&w)), (2e-5, 2e-5));

        let mut sum = poisoned(rows * outputs);
        cpu.linear_add(dims, &mut sum, &dy, &x, &w).unwrap();
        let wanted: Vec<f64> = wide(&y).iter().zip(wide(&dy)).map(|(y, residual)| y + residual).collect();
        all_close("residual + y", &sum, &wanted, (2e-5, 2e-5));

        let (mut dx, mut dw) = (poisoned(rows * inputs), poisoned(outputs * inputs));
        cpu.linear_backward_input(dims, &mut dx, &dy, &w).unwrap();
        cpu.linear_backward_weight(dims, &mut dw, Write::Overwrite, &dy, &x).unwrap();
        if rows < 10 {
            let loss_x = differences(&wide(&x), |x| dot(&reference::linear(dims, x, &wide(&w)), &dy));
            all_close("dx", &dx, &loss_x, GRADIENT);
            let loss_w = differences(&wide(&w), |w| dot(&reference::linear(dims, &wide(&x), w), &dy));
            all_close("dw", &dw, &loss_w, GRADIENT);
        }
        let twice: Vec<f64> = dw.iter().map(|&dw| 2.0 * f64::from(dw)).collect();
        cpu.linear_backward_weight(dims, &mut dw, Write::Accumulate, &dy, &x).unwrap();
        all_close("dw twice", &dw, &twice, (2e-5, 2e-5));
    }
}

#[test]
fn embedding_and_its_gradient() {
    let mut cpu = cpu();
    for (rows, vocabulary, width) in [(1, 2, 1), (9, 5, 3), (40, 1000, 33)] {
        let dims = Lookup { rows, vocabulary, width };
        let (table, dx) = (random(0, vocabulary * width), random(1, rows * width));
        let ids = random_ids(2, rows, vocabulary);
        let mut x = poisoned(rows * width);
        let tokens = tokens(&ids);
        cpu.embed(dims, &mut x, &table, &tokens).unwrap();
        let mut sums = vec![0.0; vocabulary * width];
        for (row, &id) in ids.iter().enumerate() {
            for column in 0..width {
                assert_eq!(x[row * width + column], table[id as usize * width + column]);
                sums[id as usize * width + column] += f64::from(dx[row * width + column]);
            }
        }
        let mut dtable = poisoned(vocabulary * width);
        cpu.embed_backward(dims, &mut dtable, Write::Overwrite, &dx, &tokens).unwrap();
        all_close("dtable", &dtable, &sums, GRADIENT);
        cpu.embed_backward(dims, &mut dtable, Write::Accumulate, &dx, &tokens).unwrap();
        sums.iter_mut().for_each(|sum| *sum *= 2.0);
        all_close("dtable twice", &dtable, &sums, GRADIENT);
    }
}

#[test]
fn norm_and_its_gradients() {
    let mut cpu = cpu();
    for (rows, width) in [(1, 1), (5, 3), (7, 37), (3, 64)] {
        let dims = Norm { rows, width };
        let len = rows * width;
        let (y, gain, dh) = (random(0, len), random(2, width), random(3, len));
        let (mut h, mut rstd) = (poisoned(len), poisoned(rows));
        cpu.norm(dims, &mut h, &mut rstd, &y, &gain).unwrap();
        all_close("h", &h, &reference::norm(dims, &wide(&y), &wide(&gain)), VALUE);
        let rstds: Vec<f64> = wide(&y).chunks(width).map(reference::rstd).collect();
        all_close("rstd", &rstd, &rstds, VALUE);

        let mut wanted_x = differences(&wide(&y), |y| dot(&reference::norm(dims, y, &wide(&gain)), &dh));
        let mut wanted_gain = differences(&wide(&gain), |gain| dot(&reference::norm(dims, &wide(&y), gain), &dh));
        let (mut dx, mut dgain) = (poisoned(len), poisoned(width));
        let (first, second) = (Write::Overwrite, Write::Accumulate);
        cpu.norm_backward(dims, &mut dx, first, &mut dgain, first, &dh, &y, &rstd, &gain).unwrap();
        all_close("dx", &dx, &wanted_x, GRADIENT);
        all_close("dgain", &dgain, &wanted_gain, GRADIENT);
        cpu.norm_backward(dims, &mut dx, second, &mut dgain, second, &dh, &y, &rstd, &gain).unwrap();
        wanted_x.iter_mut().chain(&mut wanted_gain).for_each(|value| *value *= 2.0);
        all_close("dx twice", &dx, &wanted_x, GRADIENT);
        all_close("dgain twice", &dgain, &wanted_gain, GRADIENT);
    }
}

#[test]
fn a_row_of_zeros_has_a_finite_norm() {
    let dims = Norm { rows: 1, width: 4 };
    let (mut h, mut rstd) = (poisoned(4), poisoned(1));
    cpu().norm(dims, &mut h, &mut rstd, &Floats::zeros(4), &random(0, 4)).unwrap();
    assert!(h.iter().all(|&h| h == 0.0));
    close("rstd", f64::from(rstd[0]), 1.0 / f64::from(NORM_EPSILON).sqrt(), 0.0, 1e-6);
}

/// Batch, context, heads, key and value heads, head size.
const HEADS: [(usize, usize, usize, usize, usize); 5] =
    [(1, 1, 1, 1, 2), (2, 5, 3, 1, 4), (1, 9, 4, 2, 6), (2, 3, 2, 2, 16), (1, 2, 1, 1, 128)];

fn heads((batch, context, heads, kv_heads, head_size): (usize, usize, usize, usize, usize)) -> Heads {
    Heads { tokens: Sequences { batch, context }, heads, kv_heads, head_size }
}

/// Elements of `q` and of `k` or `v`.
fn lengths(dims: Heads) -> (usize, usize) {
    let per_head = dims.tokens.rows() * dims.head_size;
    (per_head * dims.heads, per_head * dims.kv_heads)
}

/// Queries, keys and values in head-major order, a sequence after another, as the CPU's attention reads them.
fn by_head(dims: Heads, parts: [&[f32]; 3]) -> Floats {
    let per_head = dims.tokens.context * dims.head_size;
    let counts = [dims.heads, dims.kv_heads, dims.kv_heads];
    let sequences = (0..dims.tokens.batch).flat_map(|sequence| {
        parts
            .into_iter()
            .zip(counts)
            .flat_map(move |(part, count)| part[sequence * count * per_head..][..count * per_head].iter().copied())
    });
    floats(&sequences.collect::<Vec<_>>())
}

/// The three parts of what [`by_head`] made: `q[B, H, T, D]`, `k[B, K, T, D]` and `v[B, K, T, D]`.
fn parts(dims: Heads, qkv: &[f32]) -> [Floats; 3] {
    let per_head = dims.tokens.context * dims.head_size;
    let firsts = [0, dims.heads, dims.heads + dims.kv_heads];
    let counts = [dims.heads, dims.kv_heads, dims.kv_heads];
    [0, 1, 2].map(|part| {
        let sequences = qkv.chunks_exact(dims.tokens.context * dims.packed_width());
        let heads = sequences.flat_map(|qkv| qkv[firsts[part] * per_head..][..counts[part] * per_head].to_vec());
        floats(&heads.collect::<Vec<_>>())
    })
}

fn floats(values: &[f32]) -> Floats {
    let mut floats = Floats::zeros(values.len());
    floats.copy_from_slice(values);
    floats
}

#[test]
fn rotary_positions_and_their_gradient() {
    let mut cpu = cpu();
    for dims in HEADS.map(heads) {
        let (q_len, kv_len) = lengths(dims);
        let table = floats(&crate::train::decoder::turns(dims.tokens.context, dims.head_size));
        let packed = random(0, q_len + 2 * kv_len);
        let mut qkv = floats(&packed);
        cpu.rotary(dims, &mut qkv, &table).unwrap();
        for (got, wanted) in parts(dims, &qkv).iter().zip(reference::rotary(dims, &wide(&packed))) {
            all_close("turned", got, &wanted, VALUE);
        }

        let (dq, dk, dv) = (random(1, q_len), random(2, kv_len), random(3, kv_len));
        let wanted = differences(&wide(&packed), |qkv| {
            let [q, k, v] = reference::rotary(dims, qkv);
            dot(&q, &dq) + dot(&k, &dk) + dot(&v, &dv)
        });
        let mut dqkv = by_head(dims, [&dq, &dk, &dv]);
        cpu.rotary_backward(dims, &mut dqkv, &table).unwrap();
        all_close("dqkv", &dqkv, &wanted, GRADIENT);
    }
}

/// Runs both passes of attention; checks values, and gives the gradients of `q`, `k` and `v`.
fn attend(cpu: &mut Cpu, dims: Heads, [q, k, v, datt]: [&Floats; 4]) -> [Floats; 3] {
    let qkv = by_head(dims, [q, k, v]);
    let (mut att, mut lse) = (poisoned(q.len()), poisoned(dims.tokens.rows() * dims.heads));
    cpu.attention(dims, &mut att, &mut lse, &qkv).unwrap();
    let (wanted_att, wanted_lse) = reference::attention(dims, &wide(q), &wide(k), &wide(v));
    all_close("att", &att, &wanted_att, VALUE);
    all_close("lse", &lse, &wanted_lse, VALUE);
    let mut dqkv = poisoned(qkv.len());
    let saved = Attended { att: &att, lse: &lse, qkv: &qkv };
    cpu.attention_backward(dims, &mut dqkv, datt, saved).unwrap();
    parts(dims, &dqkv)
}

#[test]
fn attention_and_its_gradients() {
    let mut cpu = cpu();
    for dims in HEADS.map(heads) {
        let (q_len, kv_len) = lengths(dims);
        let inputs = [random(0, q_len), random(1, kv_len), random(2, kv_len)];
        let datt = random(3, q_len);
        let gradients = attend(&mut cpu, dims, [&inputs[0], &inputs[1], &inputs[2], &datt]);
        for (index, gradient) in gradients.iter().enumerate() {
            let mut point = inputs.each_ref().map(|input| wide(input));
            let at = point[index].clone();
            let point = std::cell::RefCell::new(&mut point);
            let wanted = differences(&at, |moved| {
                let mut point = point.borrow_mut();
                point[index].copy_from_slice(moved);
                dot(&reference::attention(dims, &point[0], &point[1], &point[2]).0, &datt)
            });
            all_close(["dq", "dk", "dv"][index], gradient, &wanted, GRADIENT);
        }
    }
}

/// Several tiles, the last one cut: gradients along random directions, as single elements would take too long.
#[test]
fn attention_over_several_tiles() {
    let mut cpu = cpu();
    for dims in [(1, 130, 2, 1, 16), (2, 65, 2, 2, 8), (1, 64, 1, 1, 32)].map(heads) {
        let (q_len, kv_len) = lengths(dims);
        let inputs = [random(0, q_len), random(1, kv_len), random(2, kv_len)];
        let datt = random(3, q_len);
        let gradients = attend(&mut cpu, dims, [&inputs[0], &inputs[1], &inputs[2], &datt]);
        for (index, gradient) in gradients.iter().enumerate() {
            let direction = random(4, gradient.len());
            let slope = differences(&[0.0], |length| {
                let mut point = inputs.each_ref().map(|input| wide(input));
                point[index].iter_mut().zip(direction.iter()).for_each(|(x, &d)| *x += length[0] * f64::from(d));
                dot(&reference::attention(dims, &point[0], &point[1], &point[2]).0, &datt)
            });
            close(["dq", "dk", "dv"][index], dot(&wide(gradient), &direction), slope[0], 1e-3, 1e-4);
        }
    }
}

#[test]
fn swiglu_and_its_gradient() {
    let mut cpu = cpu();
    for (rows, ffn) in [(1, 1), (3, 5), (2, 67)] {
        let dims = Gated { rows, ffn };
        let (mut gate_up, dact) = (random(0, rows * 2 * ffn), random(1, rows * ffn));
        gate_up[0] = 60.0; // σ is 1 in f32
        let mut act = poisoned(rows * ffn);
        cpu.swiglu(dims, &mut act, &gate_up).unwrap();
        all_close("act", &act, &reference::swiglu(dims, &wide(&gate_up)), VALUE);
        let wanted = differences(&wide(&gate_up), |gate_up| dot(&reference::swiglu(dims, gate_up), &dact));
        let mut again = floats(&dact);
        cpu.swiglu_backward(dims, &mut gate_up, &mut again).unwrap();
        all_close("dgate_up", &gate_up, &wanted, GRADIENT);
        all_close("act again", &again, &wide(&act), VALUE);
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    let mut cpu = cpu();
    for (rows, vocabulary) in [(1, 2), (3, 7), (5, 101)] {
        let dims = Logits { rows, vocabulary };
        let mut logits = random(0, rows * vocabulary);
        logits.iter_mut().for_each(|value| *value *= 5.0);
        let targets = random_ids(1, rows, vocabulary);
        let mean = |logits: &[f64]| reference::losses(dims, logits, &targets).iter().sum::<f64>() / rows as f64;
        let (wanted_losses, wanted) =
            (reference::losses(dims, &wide(&logits), &targets), differences(&wide(&logits), mean));
        let mut losses = poisoned(rows);
        cpu.cross_entropy(dims, &mut losses, &mut logits, &tokens(&targets)).unwrap();
        all_close("losses", &losses, &wanted_losses, VALUE);
        all_close("dlogits", &logits, &wanted, GRADIENT);
        cpu.begin_totals().unwrap();
        cpu.add_loss(&losses, 0.5).unwrap();
        cpu.add_loss(&losses, 0.5).unwrap();
        close("mean", cpu.outcome().unwrap().loss, wanted_losses.iter().sum::<f64>() / rows as f64, 1e-6, 1e-6);
    }
}

#[test]
fn logits_far_apart_neither_overflow_nor_vanish() {
    let dims = Logits { rows: 1, vocabulary: 3 };
    let mut logits = Floats::zeros(3);
    logits.copy_from_slice(&[1e4, -1e4, 0.0]);
    let mut losses = poisoned(1);
    let targets: Box<[u32]> = [1].into();
    cpu().cross_entropy(dims, &mut losses, &mut logits, &tokens(&targets)).unwrap();
    assert_eq!((losses[0], &*logits), (2e4, &[1.0, -1.0, 0.0][..]));
}

#[test]
fn sums_of_squares_are_those_of_f64_and_repeat() {
    let mut cpu = cpu();
    for len in [0, 1, 33, 16_384, 50_001] {
        let values = random(0, len);
        let wanted: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        let mut sum = || {
            cpu.begin_totals().unwrap();
            cpu.add_squares(&values).unwrap();
            cpu.outcome().unwrap().squares
        };
        let got = sum();
        close("sum of squares", got, wanted, 0.0, 1e-6);
        assert_eq!(got.to_bits(), sum().to_bits());
    }
}

#[test]
fn adamw_follows_its_paper_and_spares_gains() {
    let mut cpu = cpu();
    let len = 20_003;
    let gains = [5..40, 19_000..19_500];
    let (weight, gradient) = (random(0, len), random(1, len));
    let mut w = random(0, len);
    let mut state = cpu.state(len, gains.to_vec()).unwrap();
    let (rate, decay, beta1, beta2, epsilon, mean) = (1e-2, 0.1, 0.9, 0.95, 1e-8, 0.25);
    let mut wanted: Vec<[f64; 3]> = wide(&weight).into_iter().map(|weight| [weight, 0.0, 0.0]).collect();
    cpu.begin_totals().unwrap();
    cpu.add_squares(&gradient).unwrap();
    let norm = mean * wide(&gradient).iter().map(|value| value * value).sum::<f64>().sqrt();
    for step in 1..=3 {
        let (bias1, bias2) = (1.0 - f64::powi(beta1, step), 1.0 - f64::powi(beta2, step));
        let update = AdamWUpdate {
            learning_rate: rate as f32,
            weight_decay: decay as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            epsilon: epsilon as f32,
            bias1: bias1 as f32,
            bias2: bias2 as f32,
            mean,
            clip_norm: Some(norm / 2.0),
        };
        cpu.adamw(&update, &mut w, &mut state, &gradient).unwrap();
        for (index, ([w, m, v], &gradient)) in wanted.iter_mut().zip(gradient.iter()).enumerate() {
            let gradient = mean / 2.0 * f64::from(gradient);
            if !gains.iter().any(|gain| gain.contains(&index)) {
                *w -= rate * decay * *w;
            }
            *m = beta1 * *m + (1.0 - beta1) * gradient;
            *v = beta2 * *v + (1.0 - beta2) * gradient * gradient;
            *w -= rate * (*m / bias1) / ((*v / bias2).sqrt() + epsilon);
        }
    }
    for (index, got) in [&w, &state.m, &state.v].into_iter().enumerate() {
        let wanted: Vec<f64> = wanted.iter().map(|state| state[index]).collect();
        all_close(["weight", "m", "v"][index], got, &wanted, (1e-6, 2e-5));
    }
}

#[test]
fn a_gradient_that_is_no_number_changes_nothing() {
    let mut cpu = cpu();
    let (mut w, mut gradient) = (random(0, 100), random(1, 100));
    gradient[17] = f32::NAN;
    let mut state = cpu.state(100, Vec::new()).unwrap();
    cpu.begin_totals().unwrap();
    cpu.add_squares(&gradient).unwrap();
    let update = AdamWUpdate {
        learning_rate: 0.1,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        bias1: 0.1,
        bias2: 0.05,
        mean: 1.0,
        clip_norm: None,
    };
    cpu.adamw(&update, &mut w, &mut state, &gradient).unwrap();
    assert_eq!(&*w, &*random(0, 100));
    assert!(state.m.iter().chain(&*state.v).all(|&moment| moment == 0.0));
}
