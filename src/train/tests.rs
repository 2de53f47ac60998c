//! The training as a whole: it learns, it repeats bit for bit, and N ranks do what one rank would.

use super::testing::{self, Failing, alone, close, run, tiny, trainer};
use super::{DataShare, ExchangeError, Reducer, StepRecord, TrainError, Trainer};
use crate::comm::CommError;
use crate::device::Clock;
use crate::model::Role;
use crate::record::{Collective, DataSource, TrainConfig};

fn mean_loss(steps: &[StepRecord]) -> f64 {
    steps.iter().map(|record| record.step.loss).sum::<f64>() / steps.len() as f64
}

/// The steps of one rank and the hash of its weights.
type Trained = (Vec<StepRecord>, String);

/// Runs `world` ranks.
fn ranks(config: &TrainConfig, world: usize) -> Vec<Trained> {
    testing::ranks(config, world, |_, mut trainer| {
        let steps = run(&mut trainer, config);
        (steps, trainer.parameters_sha256().unwrap())
    })
}

#[test]
fn the_loss_falls_from_that_of_a_uniform_guess() {
    let config = TrainConfig { steps: 150, batch: 8, ..tiny() };
    let steps = run(&mut alone(&config), &config);
    close("first loss", steps[0].step.loss, 53_f64.ln(), 0.05, 0.0);
    let last = mean_loss(&steps[140..]);
    assert!(last < 53_f64.ln() - 0.8, "after 150 steps the loss is still {last}");
}

#[test]
fn the_loss_falls_on_a_token_file() {
    let folder = tempfile::tempdir().unwrap();
    for (token_bytes, name) in [(2_u8, "short.bin"), (4, "long.bin")] {
        let path = folder.path().join(name);
        let ids = (0..5000_u32).map(|position| position * position % 53);
        let bytes: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()[..usize::from(token_bytes)].to_vec()).collect();
        std::fs::write(&path, bytes).unwrap();
        let data = DataSource::File { path: path.to_str().unwrap().into(), token_bytes };
        let config = TrainConfig { steps: 60, batch: 4, data, ..tiny() };
        let steps = run(&mut alone(&config), &config);
        let last = mean_loss(&steps[55..]);
        assert!(last < steps[0].step.loss - 0.8, "{name}: from {} to {last}", steps[0].step.loss);
    }
}

#[test]
fn one_seed_gives_one_result_on_any_number_of_threads() {
    let config = TrainConfig { accumulate: 2, ..tiny() };
    let result = |config: &TrainConfig, threads| {
        let mut trainer = trainer(config, DataShare { rank: 0, world: 1 }, threads, Reducer::none());
        let losses: Vec<u64> = run(&mut trainer, config).iter().map(|record| record.step.loss.to_bits()).collect();
        (losses, trainer.parameters_sha256().unwrap())
    };
    let first = result(&config, 1);
    assert_eq!(first, result(&config, 1));
    assert_eq!(first, result(&config, 3));
    assert_ne!(first, result(&TrainConfig { seed: 8, ..config }, 1));
}

#[test]
fn bucket_sizes_do_not_change_what_is_computed() {
    let config = TrainConfig { clip_norm: None, ..tiny() };
    let whole = TrainConfig { bucket_bytes: crate::units::Bytes::mebi(1.0), ..config.clone() };
    let hash = |config: &TrainConfig| {
        let mut trainer = alone(config);
        run(&mut trainer, config);
        trainer.parameters_sha256().unwrap()
    };
    assert_eq!(hash(&config), hash(&whole));
}

#[test]
fn two_micro_steps_equal_one_of_twice_the_batch() {
    let whole = TrainConfig { batch: 4, accumulate: 1, ..tiny() };
    let halves = TrainConfig { batch: 2, accumulate: 2, ..tiny() };
    let (whole, halves) = (run(&mut alone(&whole), &whole), run(&mut alone(&halves), &halves));
    for (whole, halves) in whole.iter().zip(&halves) {
        assert_eq!(whole.step.tokens, halves.step.tokens);
        close("loss", halves.step.loss, whole.step.loss, 0.0, 1e-5);
        close("gradient norm", halves.step.grad_norm, whole.step.grad_norm, 0.0, 1e-4);
    }
}

#[test]
fn ranks_equal_one_rank_with_all_their_batches_and_each_other_bit_for_bit() {
    let config = tiny();
    for world in [2, 3] {
        let whole = TrainConfig { batch: world * config.batch, ..config.clone() };
        let whole = run(&mut alone(&whole), &whole);
        let ranks = ranks(&config, world);
        for (steps, hash) in &ranks {
            assert_eq!(*hash, ranks[0].1, "ranks hold different weights");
            assert_eq!(steps.len(), config.steps);
            for (step, first) in steps.iter().zip(&ranks[0].0) {
                assert_eq!(step.step.grad_norm.to_bits(), first.step.grad_norm.to_bits());
                assert_eq!(step.step.checksum.is_some(), step.step.index % 2 == 1);
                assert_eq!(step.step.checksum, first.step.checksum);
            }
        }
        for (index, whole) in whole.iter().enumerate() {
            let loss = ranks.iter().map(|(steps, _)| steps[index].step.loss).sum::<f64>() / world as f64;
            close("loss", loss, whole.step.loss, 0.0, 1e-5);
            close("gradient norm", ranks[0].0[index].step.grad_norm, whole.step.grad_norm, 0.0, 1e-4);
        }
    }
}

/// Ranks that share the optimizer's state sum the same gradients and update the same weights: without clipping to the bit.
/// With it the norm is added up from other parts, and may be another in its last bits.
#[test]
fn ranks_that_share_the_state_of_the_optimizer_train_as_ranks_that_do_not() {
    let steps = |ranks: &[Trained]| ranks[0].0.iter().map(|record| record.step.clone()).collect::<Vec<_>>();
    for (world, clip_norm) in [(2, None), (3, None), (2, Some(0.5)), (4, Some(0.5))] {
        let config = TrainConfig { clip_norm, accumulate: 2, ..tiny() };
        let (whole, shared) = (ranks(&config, world), ranks(&TrainConfig { zero: 1, ..config }, world));
        for (_, hash) in &shared {
            assert_eq!(*hash, shared[0].1, "ranks hold different weights");
        }
        if clip_norm.is_none() {
            assert_eq!(shared[0].1, whole[0].1, "{world} ranks hold the weights that they hold without sharing");
        }
        for (shared, whole) in steps(&shared).iter().zip(steps(&whole)) {
            if clip_norm.is_none() {
                assert_eq!((shared.loss.to_bits(), &shared.checksum), (whole.loss.to_bits(), &whole.checksum));
            }
            close("loss", shared.loss, whole.loss, 0.0, 1e-5);
            close("gradient norm", shared.grad_norm, whole.grad_norm, 0.0, 1e-5);
        }
    }
}

#[test]
fn ranks_that_share_the_state_keep_a_part_each_and_exchange_gradients_and_weights() {
    let config = TrainConfig { zero: 1, ..tiny() };
    let buckets = super::Places::of(&config).lengths().len();
    let elements = config.shape.parameter_count() as usize;
    let kept = testing::ranks(&config, 3, |_, mut trainer| {
        let steps = run(&mut trainer, &config);
        for StepRecord { step, buckets: events } in &steps[..3] {
            let count = |collective| events.iter().filter(|event| event.collective == collective).count();
            let wanted = if step.index % 2 == 0 { buckets } else { 0 };
            assert_eq!([Collective::ReduceScatter, Collective::AllGather].map(count), [wanted; 2]);
            assert!(events.iter().all(|event| event.end_s <= step.start_s + step.step_s));
        }
        assert!(steps.iter().all(|record| 0.0 < record.step.exposed_s.0), "weights come before the next step");
        trainer.complete().unwrap();
        let weights = trainer.weight(Role::Head).unwrap();
        (trainer.adamw.states.iter().map(|state| state.m.len()).sum::<usize>(), weights)
    });
    let total: usize = kept.iter().map(|(moments, _)| moments).sum();
    assert_eq!(total, elements, "each moment is kept by one rank");
    assert!(kept.iter().all(|(moments, weights)| *moments < elements / 2 && *weights == kept[0].1));
}

#[test]
fn a_rank_whose_peers_are_gone_when_weights_are_gathered_says_so_and_can_still_be_read() {
    let config = TrainConfig { zero: 1, ..tiny() };
    let ends = testing::ranks(&config, 2, |rank, mut trainer| {
        let clock = Clock::starting_now();
        let first = trainer.step(&clock);
        if rank == 1 {
            return None;
        }
        first.unwrap();
        let error = trainer.step(&clock).unwrap_err();
        trainer.parameters_sha256().unwrap();
        Some(error)
    });
    let error = ends.into_iter().flatten().next().expect("rank 0 fails");
    let TrainError::Exchange { step: 1, source: ExchangeError::Comm(CommError::PeerLeft { peer: 1, .. }) } = &error
    else {
        panic!("{error:?}");
    };
}

#[test]
fn a_weight_that_one_rank_alone_changes_shows_in_the_next_checksum() {
    let config = TrainConfig { steps: 6, ..tiny() };
    let ranks = testing::ranks(&config, 2, |rank, mut trainer| {
        let clock = Clock::starting_now();
        let step = |trainer: &mut Trainer| trainer.step(&clock).unwrap().step;
        let mut steps = vec![step(&mut trainer), step(&mut trainer), step(&mut trainer)];
        if rank == 1 {
            let weight = &mut trainer.model.weights.bucket_mut(2)[7];
            *weight = f32::from_bits(weight.to_bits() ^ 1);
        }
        steps.extend((3..6).map(|_| step(&mut trainer)));
        steps
    });
    let alike = |step: usize| ranks[0][step].checksum == ranks[1][step].checksum;
    assert_eq!((alike(1), alike(3)), (true, false));
}

#[test]
fn sampled_steps_carry_every_bucket_in_order() {
    let config = tiny();
    let lengths = super::exchanged_lengths(&config, 1).unwrap();
    assert!(lengths.len() > 3);
    let (steps, _) = ranks(&config, 2).remove(0);
    for StepRecord { step, buckets } in steps {
        if step.index % config.bucket_events_every != 0 {
            assert!(buckets.is_empty());
            continue;
        }
        assert_eq!(buckets.len(), lengths.len());
        for (index, (bucket, elements)) in buckets.iter().zip(&lengths).enumerate() {
            assert_eq!((bucket.step, bucket.index, bucket.bytes.0), (step.index, index, *elements as u64 * 4));
            assert!(step.start_s <= bucket.ready_s && bucket.ready_s <= bucket.start_s);
            assert!(bucket.start_s <= bucket.end_s && bucket.end_s <= step.start_s + step.step_s);
        }
    }
}

#[test]
fn the_phases_of_a_step_lie_within_it_and_steps_follow_one_another() {
    let config = TrainConfig { accumulate: 2, ..tiny() };
    let steps = run(&mut alone(&config), &config);
    let mut end = None;
    for (index, StepRecord { step, buckets }) in steps.iter().enumerate() {
        assert!(buckets.is_empty(), "nothing is exchanged");
        assert_eq!((step.index, step.tokens.0), (index, 2 * 2 * 13));
        let phases = step.forward_s + step.backward_s + step.exposed_s + step.optimizer_s;
        assert!(phases.0 > 0.0 && phases.0 <= step.step_s.0 + 1e-9, "{phases} in {}", step.step_s);
        if let Some(end) = end {
            close("begin", step.start_s.0, end, 1e-9, 0.0);
        }
        end = Some((step.start_s + step.step_s).0);
    }
}

#[test]
fn a_failed_exchange_ends_the_step_with_its_cause() {
    let config = tiny();
    let communicator = Failing { fails_at: super::exchanged_lengths(&config, 1).unwrap().len() + 1 };
    let share = DataShare { rank: 0, world: 1 };
    let mut trainer = trainer(&config, share, 1, Reducer::threaded(communicator).unwrap());
    let clock = Clock::starting_now();
    trainer.step(&clock).unwrap();
    let error = trainer.step(&clock).unwrap_err();
    let TrainError::Exchange { step: 1, source: ExchangeError::Comm(CommError::PeerDied { .. }) } = &error else {
        panic!("{error:?}");
    };
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("rank 0 died"), "{cause}");
    let again = trainer.step(&clock).unwrap_err();
    assert!(matches!(again, TrainError::Exchange { source: ExchangeError::Lost, .. }), "{again:?}");
}

#[test]
fn a_training_that_diverges_says_so() {
    let config = TrainConfig { learning_rate: 1e30, clip_norm: None, steps: 20, ..tiny() };
    let mut trainer: Trainer = alone(&config);
    let clock = Clock::starting_now();
    let error = (0..20).find_map(|_| trainer.step(&clock).err()).expect("a learning rate of 1e30 diverges");
    assert!(matches!(error, TrainError::Diverged { .. }), "{error:?}");
}

#[test]
fn the_smallest_and_odd_sizes_train() {
    for (batch, context, accumulate, threads) in [(1, 1, 1, 1), (1, 65, 1, 2), (3, 2, 3, 4), (1, 129, 2, 3)] {
        let config = TrainConfig { batch, context, accumulate, steps: 2, ..tiny() };
        let mut trainer = trainer(&config, DataShare { rank: 0, world: 1 }, threads, Reducer::none());
        for StepRecord { step, .. } in run(&mut trainer, &config) {
            close("loss", step.loss, 53_f64.ln(), 0.3, 0.0);
            assert!(0.0 < step.grad_norm);
        }
    }
}

#[test]
fn gradients_are_clipped_to_the_norm_asked_for() {
    let after_one_step = |clip_norm| {
        let config = TrainConfig { clip_norm, steps: 2, ..tiny() };
        let mut trainer = alone(&config);
        let norms: Vec<f64> = run(&mut trainer, &config).iter().map(|record| record.step.grad_norm).collect();
        (norms[0], trainer.parameters_sha256().unwrap())
    };
    let (free_norm, free) = after_one_step(None);
    let (clipped_norm, clipped) = after_one_step(Some(free_norm / 2.0));
    let (loose_norm, loose) = after_one_step(Some(free_norm * 100.0));
    assert_eq!((free_norm, free_norm), (clipped_norm, loose_norm), "the norm is that before clipping");
    assert!(free == loose && free != clipped, "only a limit below the norm changes the weights");
}
