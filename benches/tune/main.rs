//! How well `rigscale tune` searches: on landscapes of which every setting was launched, beside random search, a Bayesian
//! search and the default. Run by `scripts/bench-tune`; `tests/tune/README.md` says how it is scored.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table")]

mod draw;
mod judge;
mod rivals;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use rigscale::record::{Origin, read_tune_file};
use rigscale::stats::mean;
use rigscale::tune::Landscape;
use serde::Serialize;

use judge::{FLAT_SEARCHES, NEAR, Score, Subject, TUNER, WHO};

/// The share of landscapes on which the setting must be found.
const WANTED: f64 = 0.9;

/// What a row tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Within 1 % of the best, with as few settings as wanted.
    Reached,
    /// Not so.
    Missed,
    /// Launches scatter so much that 1 % cannot be told: not reached.
    CannotBeTold,
}

#[derive(Serialize)]
struct Row {
    landscape: String,
    origin: Origin,
    settings: usize,
    launches: usize,
    /// Scatter of a launch, as a share.
    noise: f64,
    /// How much longer the step is than with the best setting, judged on launches that no search saw; mean of all deals.
    default: f64,
    random: f64,
    bayes: f64,
    /// The tuner's without a model of the machine.
    blind: f64,
    tuner: f64,
    /// Half the 95 % interval of the tuner's.
    half: f64,
    /// The same of default and tuner, truly; none where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    truly: Option<[f64; 2]>,
    /// How far the setting is truly behind that launches take for best.
    #[serde(skip_serializing_if = "Option::is_none")]
    oracle: Option<f64>,
    /// Share of deals in which the tuner's setting was within 1 % of the best: truly, where that is known.
    near: f64,
    /// Most settings that it launched, and how many it may.
    tried: usize,
    allowed: usize,
    /// How often it launched, on average.
    searched: f64,
    /// Searches in which a gain was claimed on a landscape in which all settings are the default.
    false_gains: usize,
    /// The default is within 1 % of the best: truly, where that is known.
    flat: bool,
    /// The tuner's setting is worse than the default by more than noise.
    worse_than_default: bool,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Sheet {
    rows: Vec<Row>,
    /// Landscapes reached, of how many; the same of those that are not flat.
    reached: [usize; 2],
    reached_not_flat: [usize; 2],
    worse_than_default: usize,
    /// Gains claimed where there are none, of how many searches.
    false_gains: [usize; 2],
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tune");
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--draw") {
        // of another lot, or elsewhere, landscapes are drawn only to see whether the figures are those of one lot
        let lot = after(&words, "--lot").map_or(Ok(draw::LOT), str::parse)?;
        return draw::draw(after(&words, "--into").map_or(folder.as_path(), Path::new), lot);
    }
    let (kept, files) = (files(&folder, &[])?, files(&folder, &words)?);
    if words.iter().any(|word| word == "--check") {
        return check(&files);
    }
    let mut rows = Vec::new();
    header();
    for path in &files {
        let row = row(path)?;
        line(&row);
        rows.push(row);
    }
    let sheet = Sheet::of(rows);
    sheet.print();
    if files != kept {
        return Ok(());
    }
    let place = folder.join("bench.json");
    fs::write(&place, serde_json::to_string_pretty(&sheet)? + "\n")?;
    eprintln!("written to {}", place.display());
    Ok(())
}

/// The word behind a flag.
fn after<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    words.iter().skip_while(|word| *word != flag).nth(1).map(String::as_str)
}

/// The landscapes of a folder, and those named beside.
fn files(folder: &Path, words: &[String]) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "jsonl");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|it| it.path())).collect::<Result<_, _>>()?;
    files.extend(words.iter().map(PathBuf::from));
    files.retain(|path| is_log(path));
    files.sort();
    Ok(files)
}

fn subject(path: &Path) -> Result<Subject, Box<dyn Error>> {
    let subject = Subject::new(Landscape::of(&read_tune_file(path)?));
    Ok(subject.map_err(|problem| format!("{}: {problem}", path.display()))?)
}

fn row(path: &Path) -> Result<Row, Box<dyn Error>> {
    let subject = subject(path)?;
    let score = subject.score();
    let allowed = subject.allowed();
    let [default, random, bayes, blind, tuner] = score.behind.map(f64::exp_m1);
    let truly = score.truly.map(|truly| [truly[0].exp_m1(), truly[TUNER].exp_m1()]);
    Ok(Row {
        landscape: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        origin: subject.landscape.head.origin,
        settings: subject.settings(),
        launches: subject.launches,
        noise: subject.noise.deviation,
        default,
        random,
        bayes,
        blind,
        tuner,
        half: score.half,
        truly,
        oracle: score.oracle.map(f64::exp_m1),
        near: score.near,
        tried: score.tried,
        allowed,
        searched: score.searched,
        false_gains: subject.false_gains(),
        flat: truly.map_or(default, |truly| truly[0]) <= NEAR,
        worse_than_default: score.than_default[1] < score.than_default[0],
        verdict: verdict(&score, allowed),
    })
}

fn verdict(score: &Score, allowed: usize) -> Verdict {
    match (score.half <= NEAR, score.behind[TUNER].exp_m1() <= NEAR && score.tried <= allowed) {
        (false, _) => Verdict::CannotBeTold,
        (true, true) => Verdict::Reached,
        (true, false) => Verdict::Missed,
    }
}

fn header() {
    println!("How much longer the step is than with the best setting of an exhaustive sweep, in %, mean of all deals.");
    println!("By launches that no search saw, ± half a 95 % interval; in brackets truly, where a model knows.\n");
    let [default, random, bayes, blind, tuner] = WHO;
    println!(
        "{:33} {:>8} {:>5} {default:>14} {random:>8} {bayes:>7} {blind:>6} {tuner:>21} {:>6} {:>6} {:>5} {:>5}",
        "landscape", "settings", "noise", "within", "tried", "runs", "false"
    );
}

fn line(row: &Row) {
    let percent = |share: f64| format!("{:.2}", share * 100.0);
    let truly = |which: usize| row.truly.map_or_else(String::new, |truly| format!(" ({})", percent(truly[which])));
    println!(
        "{:33} {:>8} {:>5} {:>14} {:>8} {:>7} {:>6} {:>21} {:>6} {:>6} {:>5.0} {:>5}  {}{}",
        row.landscape,
        row.settings,
        percent(row.noise),
        percent(row.default) + &truly(0),
        percent(row.random),
        percent(row.bayes),
        percent(row.blind),
        format!("{} ±{}{}", percent(row.tuner), percent(row.half), truly(1)),
        format!("{:.0} %", row.near * 100.0),
        format!("{}/{}", row.tried, row.allowed),
        row.searched,
        format!("{}/{FLAT_SEARCHES}", row.false_gains),
        match row.verdict {
            Verdict::Reached => "reached",
            Verdict::Missed => "MISSED",
            Verdict::CannotBeTold => "CANNOT BE TOLD",
        },
        if row.flat { ", flat" } else { "" },
    );
}

impl Sheet {
    fn of(rows: Vec<Row>) -> Self {
        let count = |counts: &dyn Fn(&Row) -> bool| {
            let of = rows.iter().filter(|row| counts(row));
            [of.clone().filter(|row| row.verdict == Verdict::Reached).count(), of.count()]
        };
        Self {
            reached: count(&|_| true),
            reached_not_flat: count(&|row| !row.flat),
            worse_than_default: rows.iter().filter(|row| row.worse_than_default).count(),
            false_gains: [rows.iter().map(|row| row.false_gains).sum(), rows.len() * FLAT_SEARCHES as usize],
            rows,
        }
    }

    fn print(&self) {
        let word = |reached| if reached { "REACHED" } else { "MISSED" };
        let [reached, all] = self.reached;
        println!(
            "\nwithin 1 % of the best by launches that the search did not see, with at most max(12, 15 %) settings: {reached} \
             of {all} landscapes, wanted 9 of 10: {}",
            word(WANTED <= reached as f64 / all.max(1) as f64)
        );
        let [reached, all] = self.reached_not_flat;
        println!("of those on which the default is not within 1 % already: {reached} of {all}");
        let worse = self.worse_than_default;
        println!("worse than the default beyond noise: {worse}, wanted 0: {}", word(worse == 0));
        let [claimed, searches] = self.false_gains;
        println!("gains claimed where there are none: {claimed} of {searches} searches");
    }
}

/// How true the score is: simulated machines are swept anew with 5 launches a setting, and what the judge says of
/// everybody's settings is held against the truth.
fn check(files: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    const TIMES: usize = 10;
    println!("{:33} {:>8} {:>8} {:>8} {:>6}", "landscape, 5 launches a setting", "judged", "truly", "scatter", "told");
    // judged and truly, of everybody
    let mut all: Vec<(f64, f64)> = Vec::new();
    for path in files {
        let scores: Vec<Score> = subject(path)?.again(TIMES, 5)?.iter().map(Subject::score).collect();
        let pairs = |who: usize| scores.iter().filter_map(move |one| Some((one.behind[who], one.truly?[who])));
        let tuner: Vec<(f64, f64)> = pairs(TUNER).collect();
        if tuner.is_empty() {
            continue;
        }
        let apart: Vec<f64> = tuner.iter().map(|(judged, truly)| judged - truly).collect();
        let centre = mean(&apart);
        let scatter = mean(&apart.iter().map(|one| (one - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        println!(
            "{:33} {:>6.2} % {:>6.2} % {:>6.2} % {:>3}/{TIMES}",
            path.file_stem().unwrap_or_default().to_string_lossy(),
            mean(&tuner.iter().map(|pair| pair.0).collect::<Vec<_>>()) * 100.0,
            mean(&tuner.iter().map(|pair| pair.1).collect::<Vec<_>>()) * 100.0,
            scatter * 100.0,
            scores.iter().filter(|score| score.half <= NEAR).count(),
        );
        all.extend((0..WHO.len()).flat_map(pairs));
    }
    let near = |log: f64| log.exp_m1() <= NEAR;
    let count = |judged, truly| all.iter().filter(|pair| (near(pair.0), near(pair.1)) == (judged, truly)).count();
    println!(
        "\nof all five columns: judged less truly {:.2} % on average; of {} within 1 % truly, {} were judged \
         not to be; of {} beyond 1 % truly, {} were judged to be within",
        mean(&all.iter().map(|(judged, truly)| judged - truly).collect::<Vec<_>>()) * 100.0,
        count(true, true) + count(false, true),
        count(false, true),
        count(true, false) + count(false, false),
        count(true, false),
    );
    Ok(())
}
