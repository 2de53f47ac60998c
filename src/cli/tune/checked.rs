//! What the rank files of a launch say: its step, whether it summed rightly, and whether NCCL took what it was told.

use crate::record::{Finding, NcclSettings, RankFile, Severity, Step};
use crate::stats::{mean, median};
use crate::units::Seconds;

/// The mean loss of so many steps may differ by this share from that of the default's first launch. Sums in another order
/// round differently, and that grows from step to step: after some 150 steps four ranks' losses of one step were seen to
/// differ by 2.6 %, one way and the other.
const LOSS_TOLERANCE: f64 = 0.02;

/// Steps over which that mean is taken.
const LOSS_WINDOW: usize = 50;

/// The gradient norm of the first step, before anything could grow, may differ by this share.
const NORM_TOLERANCE: f64 = 0.02;

/// The median over the counted steps of the mean over ranks.
pub(super) fn step_of(ranks: &[RankFile], warm_up: usize) -> Seconds {
    let steps = ranks.iter().map(|rank| rank.steps.len()).min().unwrap_or(0);
    let of_step = |step: usize| mean(&ranks.iter().map(|rank| rank.steps[step].step_s.0).collect::<Vec<_>>());
    Seconds(median(&(warm_up.min(steps - 1)..steps).map(of_step).collect::<Vec<_>>()))
}

/// Mean loss and gradient norm of each step.
pub(super) fn trace(ranks: &[RankFile]) -> Vec<(f64, f64)> {
    let steps = ranks.iter().map(|rank| rank.steps.len()).min().unwrap_or(0);
    let over =
        |step: usize, of: fn(&Step) -> f64| mean(&ranks.iter().map(|rank| of(&rank.steps[step])).collect::<Vec<_>>());
    (0..steps).map(|step| (over(step, |it| it.loss), over(step, |it| it.grad_norm))).collect()
}

/// Whether ranks that exchange gradients ended with different weights.
pub(super) fn ranks_disagree(ranks: &[RankFile]) -> Option<String> {
    let hash = |rank: &RankFile| rank.end.as_ref().and_then(|end| end.parameters_sha256.clone());
    let differ = ranks.windows(2).any(|pair| hash(&pair[0]) != hash(&pair[1]));
    differ.then(|| "the ranks ended with different weights".to_owned())
}

/// In what a training differs from the same training with everything left alone.
pub(super) fn disagreement(reference: &[(f64, f64)], found: &[(f64, f64)]) -> Option<String> {
    // what is no number is far from all
    let near = |one: f64, other: f64, tolerance: f64| (one - other).abs() <= tolerance * other.abs().max(1e-9);
    let both = || reference.iter().zip(found).enumerate();
    let norm = both().take(1).find(|(_, (wanted, got))| !near(got.1, wanted.1, NORM_TOLERANCE));
    if let Some((step, (wanted, got))) = norm {
        return Some(format!("the gradient norm of step {step} is {}, with everything left alone {}", got.1, wanted.1));
    }
    let losses = |all: &[(f64, f64)]| mean(&all.iter().map(|(loss, _)| *loss).collect::<Vec<_>>());
    let windows = reference.chunks(LOSS_WINDOW).zip(found.chunks(LOSS_WINDOW)).enumerate();
    windows.filter(|(_, (wanted, got))| wanted.len() == got.len()).find_map(|(window, (wanted, got))| {
        let (wanted, got, first) = (losses(wanted), losses(got), window * LOSS_WINDOW);
        (!near(got, wanted, LOSS_TOLERANCE))
            .then(|| format!("the mean loss from step {first} on is {got:.4}, with everything left alone {wanted:.4}"))
    })
}

pub(super) fn wrong_sum(trial: &str, seen: String) -> Finding {
    Finding {
        code: "tune-wrong-sum".into(),
        severity: Severity::Fault,
        addresses: vec![trial.into()],
        seen,
        expected: "the same training from the same seed, whatever the setting, to within rounding".into(),
        remedy:
            "Do not use this setting on this machine; if it is one that NCCL documents as safe, report it with the \
                 rank files of the trial."
                .into(),
    }
}

pub(super) fn refused(trial: &str, seen: String) -> Finding {
    Finding {
        code: "tune-refused".into(),
        severity: Severity::Note,
        addresses: vec![trial.into()],
        seen,
        expected: "a training that fits the machine with this setting too".into(),
        remedy: "none is needed: the search goes on without it".into(),
    }
}

/// In what NCCL did otherwise than it was told, where its log tells: a variable that came from elsewhere, other numbers of
/// channels (`ncclTopoPostset` in src/graph/connect.cc keeps them within the limits of the communicator), peers where they
/// were switched off.
pub(super) fn not_taken(told: &NcclSettings, ranks: &[RankFile]) -> Option<String> {
    ranks.iter().filter_map(|rank| rank.head.transport.as_ref()).find_map(|seen| {
        let other = told.environment.iter().find_map(|(name, value)| {
            let took = seen.environment.get(name).filter(|took| *took != value)?;
            Some(format!("NCCL took {name}={took}, not {value}"))
        });
        let channels = seen.channels.and_then(|channels| {
            let (least, most) = (told.min_ctas.unwrap_or(1), told.max_ctas.unwrap_or(u32::MAX));
            let within = (least..=most.max(least)).contains(&channels);
            (!within).then(|| format!("NCCL runs {channels} channels, where {least} to {most} were asked for"))
        });
        let off = told.environment.get("NCCL_P2P_DISABLE").is_some_and(|value| value == "1");
        let peer = seen.via.values().find(|via| off && via.starts_with("P2P"));
        other.or(channels).or(peer.map(|via| format!("NCCL goes by {via}, where peers were switched off")))
    })
}

pub(super) fn ignored(trial: &str, seen: String) -> Finding {
    Finding {
        code: "tune-not-taken".into(),
        severity: Severity::Note,
        addresses: vec![trial.into()],
        seen,
        expected: "NCCL does what the setting says, so that its step tells of the setting".into(),
        remedy: "none is needed: the search goes on without it; NCCL's log lies beside the rank files".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::{Transport, read_rank_file};

    #[test]
    fn a_wrong_sum_is_seen_and_rounding_is_not() {
        let reference: Vec<(f64, f64)> = (0..20).map(|step| (7.0 - 0.01 * f64::from(step), 2.5)).collect();
        let rounded: Vec<(f64, f64)> = reference.iter().map(|(loss, norm)| (loss * 1.002, norm * 0.999)).collect();
        assert_eq!(disagreement(&reference, &rounded), None);
        let halved: Vec<(f64, f64)> = reference.iter().map(|(loss, norm)| (*loss, norm * 0.5)).collect();
        assert!(disagreement(&reference, &halved).unwrap().contains("gradient norm of step 0"));
        let reference: Vec<(f64, f64)> = (0..120).map(|step| (7.0 - 0.01 * f64::from(step), 2.5)).collect();
        let grown = |step: usize| 1.0 + 0.0002 * step as f64 * if step.is_multiple_of(2) { 1.0 } else { -1.0 };
        let chaotic: Vec<_> = reference.iter().enumerate().map(|(at, one)| (one.0 * grown(at), one.1)).collect();
        assert_eq!(disagreement(&reference, &chaotic), None, "single losses drift apart after many steps");
        let mut late = reference.clone();
        late[60..].iter_mut().for_each(|one| one.0 *= 1.05);
        assert!(disagreement(&reference, &late).unwrap().contains("mean loss from step 50 on"));
        let mut nothing = reference.clone();
        nothing[3].0 = f64::NAN;
        assert!(disagreement(&reference, &nothing).is_some(), "what is no number agrees with nothing");
    }

    #[test]
    fn what_nccl_did_not_take_is_seen_and_what_it_took_is_not() {
        let place =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/example/runs/launch-1_ddp-2/rank-0.jsonl");
        let mut file = read_rank_file(&place).unwrap();
        let pair = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let mut told = NcclSettings { min_ctas: Some(4), max_ctas: Some(4), ..NcclSettings::default() };
        let mut seen = |told: &NcclSettings, transport: Transport| {
            file.head.transport = Some(transport);
            not_taken(told, std::slice::from_ref(&file))
        };
        let channels = |count| Transport { channels: Some(count), ..Transport::default() };
        assert_eq!(seen(&told, channels(4)), None);
        assert_eq!(seen(&told, Transport::default()), None, "what the log does not tell is no finding");
        assert!(seen(&told, channels(8)).unwrap().contains("8 channels"));
        told = NcclSettings { environment: pair("NCCL_P2P_DISABLE", "1"), ..NcclSettings::default() };
        let by = |via: &str| Transport { via: BTreeMap::from([(1, via.to_owned())]), ..Transport::default() };
        assert_eq!(seen(&told, by("SHM/direct/direct")), None);
        assert!(seen(&told, by("P2P/CUMEM")).unwrap().contains("P2P/CUMEM"));
        let other = Transport { environment: pair("NCCL_P2P_DISABLE", "0"), ..Transport::default() };
        assert!(seen(&told, other).unwrap().contains("NCCL took NCCL_P2P_DISABLE=0"));
    }
}
