//! The search on landscapes whose best is known, and what is said of what it finds.

mod claims;

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::predict::{Alone as Known, NcclVersion, Solo, platform};
use crate::record::{
    Arm, Device, Finding, NcclSettings, Origin, Precision, Setting, Severity, TrainConfig, TuneConditions, TuneHead,
    TuneIdentity, TuneKnob,
};
use crate::units::{Bytes, Seconds};

fn config(device: Device) -> TrainConfig {
    let precision = if device == Device::Cpu { Precision::F32 } else { Precision::Bf16 };
    TrainConfig { steps: 20, precision, ..canonical("llama-15m", 1, 128, 1).unwrap() }
}

fn host(nccl: NcclVersion, world: usize, share_gpu: bool) -> Host {
    Host {
        device: Device::Cuda,
        nccl: Some(nccl),
        world,
        share_gpu,
        peers: Some(true),
        capability: Some(120),
        cpus: 4,
        all_cpus: 16,
        config: config(Device::Cuda),
        set: BTreeMap::new(),
        ways: BTreeMap::new(),
        rounding: false,
    }
}

fn knob(name: &str, choices: &[&str], ordered: bool) -> TuneKnob {
    TuneKnob { name: name.into(), choices: choices.iter().map(|one| (*one).to_owned()).collect(), ordered }
}

/// 5 · 3 · 3 · 2 settings.
fn space() -> Space {
    let knobs = vec![
        knob("transport", &["NCCL_P2P_DISABLE=1", "NCCL_P2P_LEVEL=SYS"], false),
        knob("ctas", &["min-ctas=2 max-ctas=2", "min-ctas=4 max-ctas=4"], true),
        knob("protocol", &["NCCL_PROTO=Simple"], false),
        knob("bucket", &["bucket-mib=1", "bucket-mib=4", "bucket-mib=8", "bucket-mib=50"], true),
    ];
    Space { knobs, left_out: Vec::new() }
}

/// A made-up machine: a step for each setting, noise, and settings that fail.
struct Made<F> {
    step: F,
    noise: f64,
    random: ChaCha8Rng,
    asked: Vec<(Setting, String, u32)>,
}

impl<F: Fn(&Setting) -> Result<f64, &'static str>> Made<F> {
    fn new(step: F, noise: f64, seed: u64) -> Self {
        Self { step, noise, random: ChaCha8Rng::seed_from_u64(seed), asked: Vec::new() }
    }
}

impl<F: Fn(&Setting) -> Result<f64, &'static str>> Site for Made<F> {
    type Error = Infallible;

    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Infallible> {
        self.asked.push((ask.setting.clone(), ask.stage.to_owned(), ask.round));
        let mut even = || f64::from(self.random.next_u32()) / f64::from(u32::MAX) - 0.5;
        let normal: f64 = (0..12).map(|_| even()).sum();
        let wall = Seconds(1.0);
        if ask.arm == Arm::Solo {
            return Ok(Outcome::Step { step: Seconds(0.08 * (self.noise * normal).exp()), wall });
        }
        Ok(match (self.step)(ask.setting) {
            Ok(step) => Outcome::Step { step: Seconds(step * (self.noise * normal).exp()), wall },
            Err(code) => Outcome::Fault {
                finding: Finding {
                    code: code.into(),
                    severity: Severity::Fault,
                    addresses: Vec::new(),
                    seen: String::new(),
                    expected: String::new(),
                    remedy: String::new(),
                },
                wall,
            },
        })
    }
}

fn limits(seed: u64) -> Limits {
    Limits {
        settings: 12,
        rounds: 8,
        looks: vec![5, 10, 20],
        budget: Seconds(1e6),
        seed,
        solo_rounds: 3,
        solo_launches: 4,
    }
}

/// Factors for each choice: the best is P2P_LEVEL=SYS with 4 blocks and 8 MiB.
fn hilly(setting: &Setting) -> Result<f64, &'static str> {
    let transport = match setting.of("transport") {
        "NCCL_P2P_LEVEL=SYS" => 0.9,
        "NCCL_P2P_DISABLE=1" => 1.1,
        _ => 1.0,
    };
    let ctas = match setting.of("ctas") {
        "min-ctas=4 max-ctas=4" => 0.95,
        "" => 1.0,
        _ => 1.05,
    };
    let bucket = match setting.of("bucket") {
        "bucket-mib=8" => 0.94,
        "bucket-mib=4" => 0.96,
        "bucket-mib=1" => 1.02,
        "" => 1.0,
        _ => 1.04,
    };
    let protocol = if setting.of("protocol").is_empty() { 1.0 } else { 1.03 };
    Ok(0.1 * transport * ctas * bucket * protocol)
}

fn no_outlook(_: &Setting) -> Option<f64> {
    None
}

fn found<F: Fn(&Setting) -> Result<f64, &'static str>>(made: &mut Made<F>, limits: &Limits) -> Found {
    search(&space(), limits, &no_outlook, made).unwrap_or_else(|never| match never {})
}

fn head() -> TuneHead {
    let identity = TuneIdentity {
        nccl: Some("2.30.7".into()),
        driver: Some("580.1".into()),
        topology_sha256: "cd".repeat(32),
        device: Device::Cuda,
        model: "llama-15m".into(),
        world: 4,
        batch: 1,
        context: 128,
        accumulate: 1,
        share_gpu: false,
        conditions: TuneConditions::default(),
    };
    TuneHead {
        knobs: space().knobs,
        ..TuneHead::begun(Origin::Measured, "t".into(), identity, jiff::Timestamp::UNIX_EPOCH)
    }
}

fn answered(found: &Found) -> Answer {
    answered_with(found, &head(), &NcclSettings::default())
}

fn answered_by(found: &Found, head: &TuneHead) -> Answer {
    answered_with(found, head, &NcclSettings::default())
}

fn answered_with(found: &Found, head: &TuneHead, told: &NcclSettings) -> Answer {
    let applied = apply(&found.best, &config(Device::Cuda), told).unwrap();
    let wanted = need(&Alone { phases: phases(), ranks: 4 }, &applied.config, found.steps().unwrap()[1], 0.9);
    let binding = Binding {
        head,
        applied: &applied,
        target: 0.9,
        bucket_bytes: Bytes::mebi(25.0),
        need: wanted,
        channels: Some(4),
        warnings: Vec::new(),
    };
    answer(found, &binding).unwrap()
}

fn variables(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn phases() -> Solo {
    Solo { forward: Seconds(0.025), backward: Seconds(0.05), optimizer: Seconds(0.005) }
}

#[test]
fn the_best_is_found_within_a_percent_among_noise_and_few_settings() {
    let best = 0.1 * 0.9 * 0.95 * 0.94;
    let mut near = 0;
    for seed in 0..40 {
        let mut made = Made::new(hilly, 0.01, seed);
        let found = found(&mut made, &limits(seed));
        assert!(found.ledger.tried() <= 12, "{}", found.ledger.tried());
        near += usize::from(hilly(&found.best).unwrap() <= best * 1.01);
        let confirmed = found.confirmed.as_ref().unwrap();
        assert!(confirmed.accepted && confirmed.gain.low <= confirmed.gain.estimate, "{seed}");
    }
    assert!(36 <= near, "{near} of 40 searches end within 1 % of the best");
}

#[test]
fn nothing_beats_the_default_where_all_are_alike() {
    let mut wrong = 0;
    for seed in 0..100 {
        let found = found(&mut Made::new(|_: &Setting| Ok(0.1), 0.02, seed), &limits(seed));
        wrong += usize::from(!found.best.is_default());
        if found.best.is_default() {
            let said = &answered(&found).result.sentences[0];
            // only what is told to be slower, or no faster by what matters, is said to be
            let told = found.confirmed.as_ref().is_some_and(|it| it.gain.high < 0.005);
            assert_eq!(said.starts_with("Nothing beats the default"), told, "{said}");
            assert!(told || said.starts_with("Nothing is known to beat the default"), "{said}");
            assert!(told || found.confirmed.is_none() || said.contains("would go unseen"), "{said}");
        }
    }
    // one side of 5 % over all looks, and only of the searches that end with a challenger
    assert!(wrong <= 6, "{wrong} of 100 flat landscapes gave a gain");
}

#[test]
fn a_hang_and_a_wrong_sum_are_findings_and_the_search_goes_on() {
    let traps = |setting: &Setting| match (setting.of("transport"), setting.of("bucket")) {
        ("NCCL_P2P_DISABLE=1", _) => Err("hang-meet"),
        (_, "bucket-mib=4") => Err("tune-wrong-sum"),
        _ => hilly(setting),
    };
    let mut made = Made::new(traps, 0.005, 3);
    let found = found(&mut made, &limits(3));
    assert_eq!(found.best.of("transport"), "NCCL_P2P_LEVEL=SYS");
    let answer = answered(&found);
    let codes: Vec<&str> = answer.result.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert!(codes.contains(&"hang-meet") && codes.contains(&"tune-wrong-sum"), "{codes:?}");
    let hung = Setting::default().with("transport", "NCCL_P2P_DISABLE=1");
    let tried = |wanted: &Setting| made.asked.iter().filter(|(setting, ..)| setting == wanted).count();
    assert_eq!(tried(&hung), 2, "a hang may pass, and is tried once more");
    let wrong = made.asked.iter().find(|(setting, ..)| setting.of("bucket") == "bucket-mib=4");
    assert_eq!(wrong.map(|(setting, ..)| tried(setting)), Some(1), "a wrong sum is not");
    assert!(answer.result.sentences.iter().any(|said| said.contains("failed: ")));
}

#[test]
fn a_default_that_fails_ends_the_search_at_once() {
    let mut made = Made::new(|_: &Setting| Err("rank-died"), 0.0, 1);
    let found = found(&mut made, &limits(1));
    assert_eq!((found.ended, found.launches, made.asked.len()), (Ended::DefaultFailed, 2, 2));
    assert!(found.steps().is_none());
}

#[test]
fn time_is_kept_and_the_confirmation_has_its_share() {
    for budget in [5.0, 15.0, 25.0] {
        let mut made = Made::new(hilly, 0.01, 9);
        let found = found(&mut made, &Limits { budget: Seconds(budget), looks: vec![5], solo_rounds: 0, ..limits(9) });
        // what has begun is ended: a round, and the first look
        assert!(found.spent.0 <= budget + 20.0, "{budget}: {}", found.spent);
        assert_eq!(found.ended, Ended::Time, "{budget}");
        let said = &answered(&found).result.sentences[0];
        assert_eq!(said.starts_with("The time was over"), found.ledger.tried() == 1, "{said}");
    }
}

#[test]
fn the_same_outcomes_give_the_same_search_so_that_a_log_can_be_replayed() {
    let run = |seed| {
        let mut made = Made::new(hilly, 0.01, seed);
        let found = found(&mut made, &limits(7));
        (made.asked, found)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).0, run(6).0);
}

#[test]
fn a_target_beyond_the_link_is_answered_with_what_it_needs() {
    // a rank alone takes 80 ms, together 160: no setting reaches 0.9
    let found = found(&mut Made::new(|_: &Setting| Ok(0.16), 0.002, 2), &limits(2));
    let answer = answered(&found);
    let both = answer.result.need.unwrap();
    assert!(both.given < both.needed.unwrap(), "{both:?}");
    let said = answer.result.sentences.join(" ");
    assert!(said.contains("No setting reached 0.9: it needs ") && said.contains("the link gives "), "{said}");
    // between CPU ranks there is no link
    let mut cores = head();
    cores.identity.device = Device::Cpu;
    let result = answered_by(&found, &cores).result;
    let said = result.sentences.join(" ");
    assert!(result.need.is_none() && said.contains("No setting reached 0.9: ranks on CPU cores"), "{said}");
    assert!(!said.contains("/s of bus bandwidth"), "{said}");
    // the model that explains the step also gives it back
    let config = config(Device::Cuda);
    let back = need(&Alone { phases: phases(), ranks: 4 }, &config, Seconds(0.16), 0.5).unwrap();
    assert!((back.given / back.needed.unwrap() - 1.0).abs() < 0.05, "0.08 / 0.16 is the target: {back:?}");
    assert!(need(&Alone { phases: phases(), ranks: 4 }, &config, Seconds(0.08), 0.9).is_none());
}

#[test]
fn the_answer_is_what_nccl_and_the_plugin_read() {
    let found = found(&mut Made::new(hilly, 0.003, 1), &limits(1));
    let answer = answered(&found);
    let set = parse_conf(&answer.nccl_conf);
    let value = |name: &str| set.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!(value("NCCL_P2P_LEVEL"), Some("SYS"));
    assert_eq!((value("NCCL_MIN_CTAS"), value("NCCL_MAX_CTAS")), (Some("4"), Some("4")));
    assert_eq!(set.len(), 3, "{set:?}");
    assert!(answer.nccl_conf.lines().all(|line| line.starts_with('#') || !line.contains(' ')), "{}", answer.nccl_conf);
    for word in ["2.30.7", "580.1", &"cd".repeat(32), "llama-15m", "bucket_cap_mb="] {
        assert!(answer.nccl_conf.contains(word), "{word}: {}", answer.nccl_conf);
    }
    assert!(answer.tuner_csv.unwrap_err().contains("protocol"), "where NCCL chose it, no row can say it");
    assert!(answer.exports.contains("export NCCL_P2P_LEVEL='SYS'\n"));
    let json = serde_json::to_string(&answer.result).unwrap();
    assert_eq!(serde_json::from_str::<crate::record::TuneResult>(&json).unwrap(), answer.result);
}

#[test]
fn the_plugin_is_told_every_collective_and_size_or_nothing() {
    let found = found(&mut Made::new(hilly, 0.003, 1), &limits(1));
    let told = |rows: &[(&str, &str)]| NcclSettings { environment: variables(rows), ..NcclSettings::default() };
    let table = |told: &NcclSettings| answered_with(&found, &head(), told).tuner_csv;
    let text = table(&told(&[("NCCL_PROTO", "Simple")])).unwrap();
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect()).collect();
    let all: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(all, ["allreduce", "reducescatter", "allgather", "broadcast", "reduce"]);
    for row in rows {
        // what no row matches, or has channels of -1, gets one channel from the plugin
        assert_eq!(row[1..], ["0", "18446744073709551615", "ring", "simple", "4", "1", "4", "-1", "-1"]);
    }
    assert!(text.contains("nccl.conf is needed beside it"));
    assert!(
        table(&told(&[("NCCL_PROTO", "Simple"), ("NCCL_ALGO", "Tree")]))
            .unwrap()
            .contains("allreduce,0,18446744073709551615,tree")
    );
    for several in ["LL,Simple", "^LL128"] {
        assert!(table(&told(&[("NCCL_PROTO", several)])).is_err(), "{several} is no one protocol");
    }
}

#[test]
fn what_was_set_already_is_written_once_as_nccl_takes_it_and_bound() {
    let found = found(&mut Made::new(|_: &Setting| Ok(0.1), 0.002, 1), &limits(1));
    let told = NcclSettings { max_ctas: Some(8), ..NcclSettings::default() };
    let mut set = head();
    set.identity.conditions.environment = variables(&[("NCCL_MAX_CTAS", "2"), ("NCCL_SOCKET_IFNAME", "lo")]);
    let answer = answered_with(&found, &set, &told);
    assert_eq!(answer.nccl_conf.matches("NCCL_MAX_CTAS=").count(), 2, "once in words, once for NCCL");
    let set = parse_conf(&answer.nccl_conf);
    let wanted = [("NCCL_MAX_CTAS", "2"), ("NCCL_SOCKET_IFNAME", "lo")];
    assert_eq!(set, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())), "the environment wins");
    assert!(answer.exports.contains("export NCCL_SOCKET_IFNAME='lo'"));
    assert!(answer.result.sentences.last().unwrap().contains("NCCL_SOCKET_IFNAME=lo already set"));
}

#[test]
fn what_is_set_already_and_what_changes_nothing_here_is_left_out_with_its_reason() {
    let plain = host(NcclVersion(2, 30, 7), 2, false);
    let knobs = |space: &Space| space.knobs.iter().map(|knob| knob.name.clone()).collect::<Vec<_>>();
    let why = |space: &Space, what: &str| {
        space.left_out.iter().find(|it| it.what == what).map(|it| it.why.clone()).unwrap_or_default()
    };
    let set = Space::of(&Host { set: variables(&[("NCCL_MAX_CTAS", "2"), ("NCCL_PROTO", "LL")]), ..plain.clone() });
    assert!(!knobs(&set).contains(&"ctas".to_owned()) && !knobs(&set).contains(&"protocol".to_owned()));
    assert!(knobs(&set).contains(&"buffer".to_owned()) && why(&set, "ctas").contains("NCCL_MAX_CTAS=2 is set already"));
    // two GPUs on AMD: NCCL goes by peers anyway, at any level
    let way = |one: &str| vec![one.to_owned()];
    let ways = BTreeMap::from([
        (String::new(), way("peers")),
        ("NCCL_P2P_DISABLE=1".to_owned(), way("host memory")),
        ("NCCL_P2P_LEVEL=PHB".to_owned(), way("peers")),
        ("NCCL_P2P_LEVEL=SYS".to_owned(), way("peers")),
    ]);
    let amd = Space::of(&Host { ways: ways.clone(), ..plain.clone() });
    let transport = amd.knobs.iter().find(|knob| knob.name == "transport").unwrap();
    assert_eq!(transport.choices, ["NCCL_P2P_DISABLE=1"]);
    assert!(why(&amd, "NCCL_P2P_LEVEL=SYS").contains("what NCCL does by itself"));
    let mut bridges = ways;
    bridges.insert(String::new(), way("host memory"));
    let bridges = Space::of(&Host { ways: bridges, ..plain.clone() });
    let transport = bridges.knobs.iter().find(|knob| knob.name == "transport").unwrap();
    assert_eq!(transport.choices, ["NCCL_P2P_LEVEL=PHB"]);
    assert!(why(&bridges, "NCCL_P2P_LEVEL=SYS").contains("the same as NCCL_P2P_LEVEL=PHB"));
    let unread = Space::of(&Host { nccl: None, ..plain });
    assert!(why(&unread, "ctas").contains("could not be read") && knobs(&unread).contains(&"bucket".to_owned()));
    for what in ["cta-policy", "NCCL_SHM_LOCALITY", "NCCL_CHUNK_SIZE"] {
        assert!(!why(&unread, what).is_empty(), "{what}");
    }
}

#[test]
fn ll128_is_never_offered_and_every_choice_can_be_applied() {
    for knob in KNOBS {
        assert!(!knob.why.is_empty() && !knob.choices.is_empty(), "{}", knob.name);
        for choice in knob.choices {
            assert!(!choice.to_ascii_uppercase().contains("LL128"), "{choice}");
            let setting = Setting::default().with(knob.name, choice);
            apply(&setting, &config(knob.device), &NcclSettings::default()).unwrap();
        }
    }
    let left_out = Space::of(&host(NcclVersion(2, 30, 7), 4, false)).left_out;
    assert!(left_out.iter().any(|it| it.what == "NCCL_PROTO=LL128"));
    for wrong in ["bucket-mib=NaN", "bucket-mib=0", "threads=0", "min-ctas=x", "rm=1", "pinning=all"] {
        let setting = Setting::default().with("x", wrong);
        assert!(apply(&setting, &config(Device::Cpu), &NcclSettings::default()).is_err(), "{wrong}");
    }
}

#[test]
fn what_the_installed_nccl_does_not_know_is_left_out_with_its_reason() {
    let names = |space: &Space| space.knobs.iter().map(|knob| knob.name.clone()).collect::<Vec<_>>();
    let new = Space::of(&host(NcclVersion(2, 30, 7), 4, false));
    assert!(names(&new).contains(&"ctas".to_owned()) && !names(&new).contains(&"channels".to_owned()));
    let old = Space::of(&host(NcclVersion(2, 16, 2), 4, false));
    assert!(names(&old).contains(&"channels".to_owned()) && !names(&old).contains(&"ctas".to_owned()));
    let why = &old.left_out.iter().find(|it| it.what == "ctas").unwrap().why;
    assert!(why.contains("2.16.2") && why.contains("2.17.0"), "{why}");
    let two = Space::of(&host(NcclVersion(2, 30, 7), 2, false));
    assert!(!names(&two).contains(&"algorithm".to_owned()));
    let lab = Space::of(&host(NcclVersion(2, 30, 7), 2, true));
    let ctas = lab.knobs.iter().find(|knob| knob.name == "ctas").unwrap();
    assert_eq!(ctas.choices, ["min-ctas=1 max-ctas=1", "min-ctas=2 max-ctas=2"], "more hang where ranks share a GPU");
    assert_eq!(lab.knobs.iter().find(|knob| knob.name == "transport").unwrap().choices, ["NCCL_P2P_DISABLE=1"]);
    let refused = Space::of(&Host { peers: Some(false), ..host(NcclVersion(2, 30, 7), 4, false) });
    assert!(!names(&refused).contains(&"transport".to_owned()), "without peers there is nothing to choose");
}

#[test]
fn equal_buckets_are_one_setting_and_a_thinned_grid_is_large_enough() {
    let host =
        Host { device: Device::Cpu, nccl: None, config: config(Device::Cpu), ..host(NcclVersion(0, 0, 0), 2, false) };
    let space = Space::of(&host);
    let mut layouts = std::collections::BTreeSet::new();
    let buckets = space.knobs.iter().find(|knob| knob.name == "bucket").unwrap();
    for choice in std::iter::once("").chain(buckets.choices.iter().map(String::as_str)) {
        let applied =
            apply(&Setting::default().with("bucket", choice), &host.config, &NcclSettings::default()).unwrap();
        let sizes: Vec<usize> = applied.config.bucket_layout().buckets.iter().map(|bucket| bucket.elements).collect();
        assert!(layouts.insert(sizes), "{choice} gives the buckets of another choice");
    }
    assert!(space.left_out.iter().any(|it| it.why.starts_with("the same buckets as")), "{:?}", space.left_out);
    let thin = space.thinned(60);
    assert!((60..200).contains(&thin.size()), "{}", thin.size());
    for (world, share_gpu) in [(2, true), (4, true), (4, false)] {
        let host = Host { world, share_gpu, ..self::host(NcclVersion(2, 30, 7), world, share_gpu) };
        assert_eq!(Space::of(&host).thinned(60).size(), 60, "{world} ranks, no more than asked for");
    }
    let grid = thin.grid();
    assert!(grid[0].is_default() && grid.len() == thin.size());
    assert_eq!(grid.iter().collect::<std::collections::BTreeSet<_>>().len(), grid.len());
}

fn simulated(seed: u64) -> Landscape {
    let board = platform("asrock-romed8-2t").unwrap().with_gpus(4).unwrap();
    let config = TrainConfig { batch: 8, context: 1024, ..config(Device::Cuda) };
    let outlook = Outlook::new(board, config, Known::Catalogue, NcclVersion::MODELLED);
    let space = Space::of(&host(NcclVersion::MODELLED, 4, false)).thinned(60);
    let file = Simulated::drawn(outlook, seed).sweep(head(), &space, 0.004, 9);
    assert_eq!(file.trials.len(), space.size() * 9);
    Landscape::of(&file)
}

#[test]
fn a_landscape_is_dealt_so_that_the_judge_sees_what_the_search_did_not() {
    let landscape = simulated(1);
    let mut pool = Pool::deal(&landscape, 4, 0, 3, 3);
    let default = Setting::default();
    assert_eq!((pool.seen(&default).len(), pool.unseen(&default).len()), (3, 3));
    assert!((landscape.spread().unwrap() / 0.004 - 0.8).abs() < 0.3, "of the quieter half");
    let mut launch = |stage, round| {
        let ask = Ask { setting: &default, arm: Arm::Ddp, stage, round, why: "" };
        match pool.launch(&ask) {
            Ok(Outcome::Step { step, .. }) => Some(step.0.ln()),
            _ => None,
        }
    };
    let mut all: Vec<f64> = (1..=3).filter_map(|round| launch("confirm", round)).collect();
    assert!(launch("confirm", 4).is_none(), "a confirmation sees each launch once");
    all.extend((1..=3).filter_map(|round| launch("bucket", round)));
    assert_eq!(launch("bucket", 4), Some(all[3]), "a search sees them over and over");
    all.extend(pool.unseen(&default));
    let mut whole = landscape.cells[&default].clone();
    all.sort_by(f64::total_cmp);
    whole.sort_by(f64::total_cmp);
    assert_eq!(all, whole);
}

#[test]
fn over_all_turns_each_launch_is_the_judges_equally_often() {
    let landscape = simulated(2);
    let launches = landscape.cells[&Setting::default()].len();
    let mut often = vec![0; launches];
    for turn in 0..launches {
        let pool = Pool::deal(&landscape, 7, turn, 4, 3);
        let mut apart = pool.known(&Setting::default());
        apart.extend(pool.unseen(&Setting::default()));
        assert_eq!((pool.unseen_places(&Setting::default()).len(), apart.len()), (launches - 7, launches));
        pool.unseen_places(&Setting::default()).iter().for_each(|place| often[*place] += 1);
    }
    assert!(often.iter().all(|times| *times == launches - 7), "{often:?}");
}

#[test]
fn a_simulated_machine_is_known_again_by_the_head_of_its_sweep() {
    let case = Case::new("asrock-romed8-2t", 4, canonical("llama-350m", 4, 2048, 9).unwrap()).unwrap();
    let space = case.space(60, false);
    let head = case.head(&space, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(Case::of(&head), Some(case.clone()));
    let mut machine = Simulated::drawn(case.outlook(), 9);
    let file = machine.sweep(head, &space, 0.0, 1);
    for trial in &file.trials {
        let truth = machine.truth(&trial.setting).unwrap();
        assert!((trial.step_s.unwrap() - truth).0.abs() <= 0.51e-6, "{}", trial.setting);
    }
    assert_eq!(Case::of(&self::head()), None, "a machine that was measured has no model that is true");
    let other = Simulated::drawn(case.outlook(), 10).truth(&Setting::default());
    assert_ne!(other, machine.truth(&Setting::default()), "each seed is another machine");
}

#[test]
fn the_drift_of_a_machine_is_taken_out_of_a_landscape() {
    let board = platform("asrock-romed8-2t").unwrap().with_gpus(2).unwrap();
    let outlook = Outlook::new(board, config(Device::Cuda), Known::Catalogue, NcclVersion::MODELLED);
    let mut file = Simulated::drawn(outlook, 1).sweep(head(), &space(), 0.0, 5);
    let still = Landscape::of(&file);
    for trial in &mut file.trials {
        let slower = 1.0 + 0.1 * f64::from(trial.round % 3);
        trial.step_s = trial.step_s.map(|step| step * slower);
    }
    let drifting = Landscape::of(&file);
    let spread = |landscape: &Landscape| landscape.noise().iter().fold(0.0_f64, |most, one| most.max(one.abs()));
    assert!(spread(&still) < 1e-5 && spread(&drifting) < 1e-5);
}

#[test]
fn the_outlook_orders_what_the_model_knows() {
    let board = platform("asrock-romed8-2t").unwrap().with_gpus(4).unwrap();
    let outlook = Outlook::new(board, config(Device::Cuda), Known::Catalogue, NcclVersion::MODELLED);
    let step = |knob: &str, choice: &str| outlook.step(&Setting::default().with(knob, choice)).unwrap();
    assert!(step("transport", "NCCL_P2P_LEVEL=SYS") < step("transport", ""), "peers beat host memory on this board");
    assert!(step("protocol", "NCCL_PROTO=LL") > step("protocol", ""));
    assert!(step("algorithm", "NCCL_ALGO=Tree") > step("algorithm", ""), "a tree moves more and waits as often");
    let protocol = |protocol: &str| {
        let sizes = Setting::default().with("bucket", "bucket-mib=50").with("first-bucket", "first-bucket-mib=25");
        outlook.step(&sizes.with("protocol", protocol)).unwrap()
    };
    assert_eq!(protocol("NCCL_PROTO=Simple"), protocol(""), "NCCL takes it for large buckets anyway");
    assert!(0.0 < outlook.bus().unwrap().0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_machine_does_limits_hold_and_no_failed_setting_is_taken(
        steps in prop::collection::vec((0.01_f64..10.0, 0_u8..8), 90),
        settings in 2_usize..30,
        seed in 0_u64..1000,
    ) {
        let grid = space().grid();
        let step = |setting: &Setting| {
            let at = grid.iter().position(|one| one == setting).expect("only settings of the space are launched");
            let (step, luck) = steps[at];
            if luck == 0 && !setting.is_default() { Err("rank-died") } else { Ok(step) }
        };
        let limits = Limits { settings, looks: vec![3], ..limits(seed) };
        let found = found(&mut Made::new(step, 0.01, seed), &limits);
        prop_assert!(found.ledger.tried() <= settings.max(1));
        prop_assert!(step(&found.best).is_ok());
        // a wrong gain is possible, a large one is not
        prop_assert!(step(&found.best).unwrap() <= step(&Setting::default()).unwrap() * 1.02);
        prop_assert!(found.launches <= settings * 8 * 4 + 30);
    }
}
