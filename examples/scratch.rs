//! scratch
#![allow(warnings)]
use rigscale::device::{Matrix, MatrixMut, multiply};
use rustix::time::{ClockId, clock_gettime};
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    for (i, o) in [(384, 1152), (384, 384), (384, 2048), (1024, 384), (384, 6144)] {
        let x = vec![0.5f32; n * i];
        let w = vec![0.25f32; o * i];
        let dy = vec![0.1f32; n * o];
        let mut y = vec![0f32; n * o];
        let mut dx = vec![0f32; n * i];
        let mut dw = vec![0f32; o * i];
        let flops = 2.0 * (n * i * o) as f64;
        let reps = (4e9 / flops).ceil() as usize + 1;
        let mut best = [1e9f64; 3];
        for _ in 0..3 {
            let t0 = cpu();
            for _ in 0..reps {
                multiply(
                    MatrixMut::rows(&mut y, n, o, o),
                    false,
                    Matrix::rows(&x, n, i, i),
                    Matrix::rows(&w, o, i, i).transposed(),
                    1,
                );
            }
            let t1 = cpu();
            for _ in 0..reps {
                multiply(
                    MatrixMut::rows(&mut dx, n, i, i),
                    false,
                    Matrix::rows(&dy, n, o, o),
                    Matrix::rows(&w, o, i, i),
                    1,
                );
            }
            let t2 = cpu();
            for _ in 0..reps {
                multiply(
                    MatrixMut::rows(&mut dw, o, i, i),
                    false,
                    Matrix::rows(&dy, n, o, o).transposed(),
                    Matrix::rows(&x, n, i, i),
                    1,
                );
            }
            let t3 = cpu();
            best[0] = best[0].min(t1 - t0);
            best[1] = best[1].min(t2 - t1);
            best[2] = best[2].min(t3 - t2);
        }
        let g = best.map(|t| flops * reps as f64 / t * 1e-9);
        println!("{n} {i} {o}: fwd {:.1} dx {:.1} dw {:.1} GFLOP/s", g[0], g[1], g[2]);
    }
}
