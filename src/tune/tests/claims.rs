//! What fails, what is claimed and what is not: machines that act on what they are asked.

use super::*;

/// A made-up machine that sees the whole of what it is asked, and how often.
struct Acted<F> {
    act: F,
    asked: usize,
    most: Option<Seconds>,
    random: ChaCha8Rng,
}

impl<F> Acted<F> {
    fn new(act: F, seed: u64) -> Self {
        Self { act, asked: 0, most: None, random: ChaCha8Rng::seed_from_u64(seed) }
    }
}

/// Nearly normal, with deviation 1.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5).sum()
}

fn fault(code: &str, wall: f64) -> Outcome {
    let finding = Finding {
        code: code.into(),
        severity: Severity::Fault,
        addresses: Vec::new(),
        seen: String::new(),
        expected: String::new(),
        remedy: String::new(),
    };
    Outcome::Fault { finding, wall: Seconds(wall) }
}

impl<F: FnMut(&Ask, usize, f64) -> Result<f64, &'static str>> Site for Acted<F> {
    type Error = Infallible;

    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Infallible> {
        self.asked += 1;
        let luck = normal(&mut self.random);
        if ask.arm == Arm::Solo {
            return Ok(Outcome::Step { step: Seconds(0.08), wall: Seconds(0.5) });
        }
        Ok(match (self.act)(ask, self.asked, luck) {
            Ok(step) => Outcome::Step { step: Seconds(step), wall: Seconds(0.5) },
            Err(code) => fault(code, self.most.map_or(46.0, |most| most.0)),
        })
    }

    fn limit(&mut self, most: Seconds) {
        self.most = Some(most);
    }
}

fn acted<F: FnMut(&Ask, usize, f64) -> Result<f64, &'static str>>(act: F, limits: &Limits) -> Found {
    let mut site = Acted::new(act, limits.seed);
    search(&space(), limits, &no_outlook, &mut site).unwrap_or_else(|never| match never {})
}

const SYS: &str = "NCCL_P2P_LEVEL=SYS";

#[test]
fn a_winner_that_fails_when_it_is_launched_again_is_out_and_said_so() {
    let trap = |ask: &Ask, _, luck: f64| match ask.stage == "confirm" && ask.setting.of("transport") == SYS {
        // after two pairs, so that there is something that could be taken for a gain
        true if 2 < ask.round => Err("hang-step"),
        _ => Ok(hilly(ask.setting)? * (0.002 * luck).exp()),
    };
    let found = acted(trap, &limits(4));
    assert_ne!(found.best.of("transport"), SYS);
    assert!(found.failed_again.iter().any(|setting| setting.of("transport") == SYS), "{:?}", found.failed_again);
    let answer = answered(&found).result;
    assert!(answer.findings.iter().any(|finding| finding.code == "hang-step"));
    assert!(
        answer.sentences.iter().any(|said| said.contains("failed when it was launched again")),
        "{:?}",
        answer.sentences
    );
}

#[test]
fn a_default_that_dies_once_in_the_second_look_is_a_finding_and_the_look_goes_on() {
    let mut died = false;
    let act = |ask: &Ask, _, luck: f64| {
        if ask.stage == "confirm" && ask.setting.is_default() && !std::mem::replace(&mut died, true) {
            return Err("rank-died");
        }
        Ok(hilly(ask.setting)? * (0.002 * luck).exp())
    };
    let found = acted(act, &limits(5));
    assert!(found.confirmed.as_ref().unwrap().accepted);
    assert!(found.ledger.faults().any(|(setting, finding)| setting.is_default() && finding.code == "rank-died"));
}

#[test]
fn a_holder_that_dies_once_is_launched_again_and_one_that_dies_twice_gives_way() {
    for fatal in [1, 2] {
        let mut left = fatal;
        let act = |ask: &Ask, _, luck: f64| {
            if ask.stage == "ctas"
                && ask.setting.of("transport") == SYS
                && ask.setting.of("ctas").is_empty()
                && 0 < left
            {
                left -= 1;
                return Err("rank-died");
            }
            Ok(hilly(ask.setting)? * (0.002 * luck).exp())
        };
        let found = acted(act, &limits(6));
        let sys = Setting::default().with("transport", SYS);
        assert_eq!(found.ledger.cell(&sys).unwrap().condemned, fatal == 2);
        assert_eq!(found.ledger.cell(&sys).unwrap().faults.len(), fatal);
        assert_eq!(found.best.of("ctas"), "min-ctas=4 max-ctas=4", "its challengers are not lost with it");
        assert_eq!(found.best.of("transport") == SYS, fatal == 1, "{}", found.best);
    }
}

#[test]
fn a_setting_that_hangs_once_may_still_win_and_a_hang_costs_no_more_than_it_must() {
    let mut hung = false;
    let act = |ask: &Ask, _, luck: f64| {
        if ask.setting.of("transport") == SYS && !std::mem::replace(&mut hung, true) {
            return Err("hang-meet");
        }
        Ok(hilly(ask.setting)? * (0.002 * luck).exp())
    };
    let found = acted(act, &Limits { budget: Seconds(90.0), ..limits(7) });
    assert_eq!(found.best.of("transport"), SYS);
    assert_ne!(found.ended, Ended::Time, "one hang does not eat the time: {} of 90 s", found.spent);
    assert!(found.ledger.tried() == 12 && found.ledger.faults().count() == 1);
}

#[test]
fn what_the_model_holds_for_hopeless_is_listed_and_the_way_between_gpus_is_launched_anyway() {
    let model = |setting: &Setting| {
        let way = if setting.of("transport") == SYS { 10.0 } else { 1.0 };
        Some(0.1 * way * if setting.of("protocol").is_empty() { 1.0 } else { 10.0 })
    };
    let mut made = Made::new(hilly, 0.002, 8);
    let found = search(&space(), &limits(8), &model, &mut made).unwrap_or_else(|never| match never {});
    assert_eq!(found.best.of("transport"), SYS, "the model is wrong there");
    let answer = answered(&found).result;
    assert!(answer.cells.iter().all(|cell| cell.setting.of("protocol").is_empty()));
    assert!(answer.hopeless.iter().any(|it| it.setting.of("protocol") == "NCCL_PROTO=Simple" && it.step_s.0 > 0.9));
}

#[test]
fn what_the_winner_does_not_need_is_left_alone() {
    // Simple helps until the buckets are larger, and does nothing then
    let act = |ask: &Ask, _, _| {
        let (simple, large) = (!ask.setting.of("protocol").is_empty(), ask.setting.of("bucket") == "bucket-mib=8");
        Ok(match (simple, large) {
            (_, true) => 0.085,
            (true, _) => 0.095,
            _ => 0.1,
        })
    };
    let found = acted(act, &Limits { settings: 40, ..limits(9) });
    assert_eq!(found.best, Setting::default().with("bucket", "bucket-mib=8"), "{}", found.best);
}

/// Searches of machines on which nothing helps, and how many of them claim a gain. Launches scatter by `noise`, and the
/// machine drifts by `drift` from launch to launch.
fn claimed(searches: u64, noise: fn(&Setting) -> f64, drift: f64) -> usize {
    let claims = (0..searches).map(|seed| {
        let (mut walk, mut own) = (0.0, ChaCha8Rng::seed_from_u64(seed ^ 0xd21f7));
        let act = |ask: &Ask, _, luck: f64| {
            walk += drift * normal(&mut own);
            Ok(0.1 * (walk + noise(ask.setting) * luck).exp())
        };
        usize::from(!acted(act, &limits(seed)).best.is_default())
    });
    claims.sum()
}

/// With these seeds 12, 6, 7, 4, 3 and 0 gains are claimed.
#[test]
fn a_gain_is_claimed_no_oftener_than_stated_whatever_scatters_and_drifts() {
    /// One side of the interval of 95 %.
    const NOMINAL: f64 = 0.025;
    type Noise = fn(&Setting) -> f64;
    let rows: [(&str, Noise, f64); 6] = [
        ("alike", |_| 0.02, 0.0),
        ("others scatter twice as much", |setting| if setting.is_default() { 0.01 } else { 0.02 }, 0.0),
        ("others scatter six times as much", |setting| if setting.is_default() { 0.01 } else { 0.06 }, 0.0),
        ("one transport scatters six times as much", |it| if it.of("transport") == SYS { 0.06 } else { 0.01 }, 0.0),
        ("the default scatters four times as much", |setting| if setting.is_default() { 0.04 } else { 0.01 }, 0.0),
        ("all drifts", |_| 0.01, 0.01),
    ];
    let searches = 600;
    // three deviations of a count
    let most = NOMINAL * searches as f64 + 3.0 * (NOMINAL * (1.0 - NOMINAL) * searches as f64).sqrt();
    for (what, noise, drift) in rows {
        let claims = claimed(searches, noise, drift);
        assert!(claims as f64 <= most, "{what}: {claims} gains claimed in {searches} searches, where there is none");
    }
}
