//! Plain loops, compiled for the widest vectors that the CPU has.

/// Runs `work`, compiled once for each of three instruction sets: the baseline of the target, AVX2 with FMA, and
/// AVX-512. The loops must be in the closure itself or in functions that are `#[inline(always)]`.
#[inline]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the CPU has just been asked for each feature that the callee is compiled with; beyond that the
            // callee only runs the safe closure that it is given.
            return unsafe { with_avx512(work) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above, for AVX2 and FMA.
            return unsafe { with_avx2(work) };
        }
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_runs_once_and_its_value_comes_back() {
        let mut runs = 0;
        let sum: f32 = vectorised(|| {
            runs += 1;
            (0..100).map(|term| term as f32).sum()
        });
        assert_eq!((runs, sum), (1, 4950.0));
    }
}
