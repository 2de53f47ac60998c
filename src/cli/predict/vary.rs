//! The variants of a prediction: every combination of what was swept.

use crate::cli::CliError;
use crate::predict::{Board, Calibration, Card, P2p, PredictError, card, edit, forecast};
use crate::topology::shares_of;
use crate::units::Bytes;

use super::ask::Asked;
use super::{Args, Prediction, Reaches, VARIANTS_MAX, Variant, board, exchange};

/// Predicts every combination of what was swept.
///
/// # Errors
/// The platform, a card, a slot or an edit cannot be used, or there are too many combinations.
pub(super) fn predict(args: &Args, asked: &Asked, name: &str) -> Result<Prediction, CliError> {
    not_ignored(args)?;
    let cards = args.gpu.iter().map(|name| Ok(Some(card(name)?))).collect::<Result<Vec<Option<&Card>>, CliError>>()?;
    let cards = if cards.is_empty() { vec![None] } else { cards };
    let machines = edited(args, name, cards[0])?;
    let as_it_is = &machines[0].1;
    let gpus: Vec<usize> = match args.gpus.is_empty() {
        true => vec![as_it_is.seats.len()],
        false => args.gpus.iter().map(|count| *count as usize).collect(),
    };
    let modes = if args.p2p.is_empty() { vec![P2p::Auto] } else { args.p2p.clone() };
    let buckets = asked.bucket_sizes(args);
    let count = machines.len() * gpus.len() * cards.len() * modes.len() * buckets.len() * asked.accumulate.len();
    if VARIANTS_MAX < count {
        return Err(CliError::Usage(format!("{count} variants are too many: at most {VARIANTS_MAX}")));
    }
    let (mut variants, mut remarks) = (Vec::new(), Vec::new());
    let largest = gpus.iter().copied().max().unwrap_or(1);
    for (edit, machine) in &machines {
        for (card, count) in cards.iter().flat_map(|card| gpus.iter().map(move |count| (*card, *count))) {
            let board = filled(machine, (count, largest), card, &mut remarks)?;
            for (p2p, bucket) in modes.iter().flat_map(|p2p| buckets.iter().map(move |bucket| (*p2p, *bucket))) {
                for accumulate in &asked.accumulate {
                    variants.push(variant(args, asked, (edit.clone(), &board), (p2p, bucket, *accumulate))?);
                }
            }
        }
    }
    Ok(Prediction {
        platform: as_it_is.name.clone(),
        title: as_it_is.title.clone(),
        model: asked.model.clone(),
        batch: asked.batch,
        context: asked.context,
        framework: asked.framework,
        target: args.target,
        notes: as_it_is.notes.clone(),
        remarks,
        variants,
    })
}

/// Refuses what would change nothing.
fn not_ignored(args: &Args) -> Result<(), CliError> {
    let usage = |text: &str| Err(CliError::Usage(text.to_owned()));
    let step = args.step.as_ref();
    if step.is_some() && 1 < args.gpu.len() {
        return usage("--step is the step of one card: with it --gpu names one card, or none");
    }
    if step.is_some_and(super::StepFrom::is_duration) && 1 < args.accumulate.len() {
        return usage("--step with a duration is the step at one --accumulate: give a run folder to sweep it");
    }
    if args.network.is_some() && args.hosts < 2 {
        return usage("--network joins hosts: say how many with --hosts");
    }
    Ok(())
}

/// The machine as it is, with only the slots that are wanted; and below it, where `--set` is given, every combination of
/// edits. A run folder holds one machine: there the edited one takes the place of the first.
///
/// # Errors
/// The platform cannot be read, a slot holds no GPU, or an edit cannot be made.
pub(super) fn edited(
    args: &Args,
    name: &str,
    stand_in: Option<&Card>,
) -> Result<Vec<(Option<String>, Board)>, CliError> {
    let mut whole = board(name, stand_in)?;
    if !args.slots.is_empty() {
        let names: Vec<&str> = args.slots.iter().map(String::as_str).collect();
        let known =
            || whole.seats.iter().map(|seat| whole.nodes[seat.node].name.as_str()).collect::<Vec<_>>().join(", ");
        let missing = |slot: &str| PredictError::NoSlot { slot: slot.to_owned(), known: known() };
        let seats = whole.seats_in(&names).map_err(missing)?;
        whole = whole.with_seats(&seats);
    }
    if let Some(largest) = args.gpus.iter().max().map(|count| *count as usize) {
        whole = whole.with_gpus(largest).map_err(|slots| too_many(&whole, largest, slots))?;
    }
    let mut machines = vec![(None, whole.clone())];
    for text in &args.set {
        let (key, values) = text.split_once('=').unwrap_or((text, ""));
        let mut more = Vec::new();
        for (before, machine) in &machines {
            for value in values.split(',') {
                let one = if text.contains('=') { format!("{key}={value}") } else { text.clone() };
                let mut machine = machine.clone();
                edit(&mut machine, &one)?;
                more.push((Some(before.iter().cloned().chain([one]).collect::<Vec<_>>().join(" ")), machine));
            }
        }
        machines = more;
        if VARIANTS_MAX < machines.len() {
            return Err(CliError::Usage(format!("--set makes more than {VARIANTS_MAX} machines")));
        }
    }
    if !args.set.is_empty() && args.out.is_none() && args.explain.is_none() {
        machines.insert(0, (None, whole));
    }
    Ok(machines)
}

fn too_many(board: &Board, asked: usize, slots: usize) -> PredictError {
    PredictError::TooMany { asked, board: board.name.clone(), slots }
}

/// The machine with so many GPUs of the largest number, of another card if one is named.
fn filled(
    whole: &Board,
    (count, largest): (usize, usize),
    card: Option<&Card>,
    remarks: &mut Vec<String>,
) -> Result<Board, CliError> {
    let board = whole.with_gpus(largest).map_err(|slots| too_many(whole, largest, slots))?;
    let mut board = board.with_seats(&shares_of(count, largest));
    if let Some(card) = card
        && 0 < board.fill(card)
    {
        let remark = format!("{} takes no NVLink bridge: those of this platform are left out", card.name);
        if !remarks.contains(&remark) {
            remarks.push(remark);
        }
    }
    Ok(board)
}

fn variant(
    args: &Args,
    asked: &Asked,
    (edit, board): (Option<String>, &Board),
    (p2p, bucket_bytes, accumulate): (P2p, Bytes, u32),
) -> Result<Variant, CliError> {
    let training = asked.training(bucket_bytes, accumulate);
    let forecast = forecast(board, &training, &exchange(args, p2p), &Calibration::default())?;
    let mut cards: Vec<&str> = board.seats.iter().map(|seat| seat.card.name.as_str()).collect();
    cards.dedup();
    // what cannot run reaches nothing
    let reaches = match forecast.hazards.iter().any(|hazard| hazard.code == "does-not-fit") {
        true => Reaches::No,
        false => Reaches::of(forecast.efficiency, args.target),
    };
    let (gpus, card) = (board.seats.len(), cards.join("+"));
    Ok(Variant { gpus, card, p2p, bucket_bytes, accumulate, edit, reaches, board: board.clone(), forecast })
}
