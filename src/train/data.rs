//! Where tokens come from: a seeded synthetic language that can be learnt, or a file of token ids.

use std::path::{Path, PathBuf};

use crate::device::Mapped;
use crate::record::{DataSource, TrainConfig};

use super::error::DataError;
use super::ops::Sequences;
use super::seed::{Purpose, below, generator, uniform};

/// Which part of each global batch a rank trains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataShare {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks that share the data.
    pub world: usize,
}

/// Tokens of one micro-step on the host.
#[derive(Debug)]
pub struct Batch {
    /// `inputs[B, T]`
    pub inputs: Vec<u32>,
    /// `targets[B, T]`: for each input the token after it.
    pub targets: Vec<u32>,
    sequence: Vec<u32>,
    context: usize,
}

impl Batch {
    /// Room for a batch; all ids are 0.
    #[must_use]
    pub fn new(tokens: Sequences) -> Self {
        let rows = tokens.rows();
        Self {
            inputs: vec![0; rows],
            targets: vec![0; rows],
            sequence: vec![0; tokens.context + 1],
            context: tokens.context,
        }
    }
}

/// The data of one training, seen from one rank.
#[derive(Debug)]
pub struct Data {
    source: Source,
    share: DataShare,
    accumulate: usize,
}

#[derive(Debug)]
enum Source {
    Synthetic(Synthetic),
    File(TokenFile),
}

impl Data {
    /// The data that `config` names.
    ///
    /// # Errors
    /// The token file is absent, too short, or holds an id outside the model's vocabulary.
    pub fn open(config: &TrainConfig, share: DataShare) -> Result<Self, DataError> {
        let vocabulary = config.shape.vocabulary;
        let source = match &config.data {
            DataSource::Synthetic => Source::Synthetic(Synthetic::new(config.seed, vocabulary)),
            DataSource::File { path, token_bytes } => {
                let file = TokenFile::open(Path::new(path), *token_bytes, vocabulary, config.seed)?;
                file.check(config.context)?;
                Source::File(file)
            }
        };
        Ok(Self { source, share, accumulate: config.accumulate })
    }

    /// Fills `batch` with this rank's sequences of a micro-step. Sequence `i` of rank `r` is number
    /// `(step · accumulate + micro) · world · B + r · B + i` of the data: N ranks with batch B see exactly what one
    /// rank with batch N·B sees.
    ///
    /// # Errors
    /// The token file holds an id outside the model's vocabulary.
    pub fn fill(&self, step: usize, micro: usize, batch: &mut Batch) -> Result<(), DataError> {
        let context = batch.context;
        let sequences = batch.inputs.len() / context;
        let first = ((step * self.accumulate + micro) * self.share.world + self.share.rank) * sequences;
        let rows = batch.inputs.chunks_exact_mut(context).zip(batch.targets.chunks_exact_mut(context));
        for (number, (inputs, targets)) in (first as u64..).zip(rows) {
            match &self.source {
                Source::Synthetic(language) => language.sample(number, &mut batch.sequence),
                Source::File(file) => file.sample(number, &mut batch.sequence)?,
            }
            inputs.copy_from_slice(&batch.sequence[..context]);
            targets.copy_from_slice(&batch.sequence[1..]);
        }
        Ok(())
    }
}

/// Classes of tokens in the synthetic language.
const CLASSES: usize = 64;

/// Successors that a class prefers; the first with probability 1/2, each next with half of the one before.
const SUCCESSORS: usize = 8;

/// Probability that a token is one of the successors of the class before it; else it is drawn by frequency alone.
const REGULAR: f64 = 0.75;

/// A language with frequent and rare words (Zipf) in which the class of a word predicts the next one. A uniform
/// guess costs `ln V` nats a token; frequencies and then the rules of the classes are learnt in a few hundred steps.
#[derive(Debug)]
struct Synthetic {
    seed: u64,
    /// `successors[CLASSES, SUCCESSORS]`
    successors: Vec<u32>,
    /// Tokens from the most to the least frequent.
    by_rank: Vec<u32>,
    /// Sums of `1 / rank` up to each rank, ending at 1.
    cumulative: Vec<f64>,
}

impl Synthetic {
    fn new(seed: u64, vocabulary: usize) -> Self {
        let mut random = generator(seed, Purpose::Language, 0);
        let mut by_rank: Vec<u32> = (0..vocabulary as u32).collect();
        for last in (1..vocabulary).rev() {
            by_rank.swap(last, below(&mut random, last + 1));
        }
        let successors = (0..CLASSES * SUCCESSORS).map(|_| below(&mut random, vocabulary) as u32).collect();
        let total: f64 = (1..=vocabulary).map(|rank| 1.0 / rank as f64).sum();
        let mut sum = 0.0;
        let cumulative = (1..=vocabulary)
            .map(|rank| {
                sum += 1.0 / (rank as f64 * total);
                sum
            })
            .collect();
        Self { seed, successors, by_rank, cumulative }
    }

    /// Sample `number`, the same wherever it is asked for.
    fn sample(&self, number: u64, out: &mut [u32]) {
        let mut random = generator(self.seed, Purpose::Sample, number);
        let mut last = None;
        for token in out {
            let regular = uniform(&mut random) < REGULAR;
            let draw = uniform(&mut random);
            *token = match last {
                Some(last) if regular => self.successor(last, draw),
                _ => self.frequent(draw),
            };
            last = Some(*token);
        }
    }

    fn successor(&self, last: u32, draw: f64) -> u32 {
        let preference = (-(1.0 - draw).log2()) as usize;
        let class = last as usize % CLASSES;
        self.successors[class * SUCCESSORS + preference.min(SUCCESSORS - 1)]
    }

    fn frequent(&self, draw: f64) -> u32 {
        let rank = self.cumulative.partition_point(|sum| *sum <= draw);
        self.by_rank[rank.min(self.by_rank.len() - 1)]
    }
}

/// Tokens that are checked before a training begins; the others are checked when they are used.
const CHECK_MAX: usize = 1 << 28;

/// A mapped file of token ids, little-endian.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    bytes: Mapped,
    token_bytes: u8,
    vocabulary: usize,
    seed: u64,
}

impl TokenFile {
    fn open(path: &Path, token_bytes: u8, vocabulary: usize, seed: u64) -> Result<Self, DataError> {
        let path = path.to_path_buf();
        let bytes = Mapped::open(&path).map_err(|source| DataError::Open { path: path.clone(), source })?;
        if ![2, 4].contains(&token_bytes) || !bytes.len().is_multiple_of(usize::from(token_bytes)) {
            return Err(DataError::Ragged { path, bytes: bytes.len(), token_bytes });
        }
        Ok(Self { path, bytes, token_bytes, vocabulary, seed })
    }

    fn tokens(&self) -> usize {
        self.bytes.len() / usize::from(self.token_bytes)
    }

    /// True to what a training with this context needs: long enough, and ids in range.
    fn check(&self, context: usize) -> Result<(), DataError> {
        if self.tokens() <= context {
            return Err(DataError::Short { path: self.path.clone(), tokens: self.tokens(), needed: context + 1 });
        }
        (0..self.tokens().min(CHECK_MAX)).try_for_each(|position| self.token(position).map(drop))
    }

    /// The id at `position`, which is inside the file.
    fn token(&self, position: usize) -> Result<u32, DataError> {
        let id = match self.token_bytes {
            2 => {
                let (ids, _) = self.bytes.as_chunks::<2>();
                u32::from(u16::from_le_bytes(ids[position]))
            }
            _ => {
                let (ids, _) = self.bytes.as_chunks::<4>();
                u32::from_le_bytes(ids[position])
            }
        };
        if (id as usize) < self.vocabulary {
            Ok(id)
        } else {
            Err(DataError::Id { path: self.path.clone(), position, id, vocabulary: self.vocabulary })
        }
    }

    /// Sample `number`: a piece of the file that begins at a place drawn from seed and number.
    fn sample(&self, number: u64, out: &mut [u32]) -> Result<(), DataError> {
        let places = self.tokens() - out.len() + 1;
        let first = below(&mut generator(self.seed, Purpose::Sample, number), places);
        for (position, token) in (first..).zip(out) {
            *token = self.token(position)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::train::testing::tiny;

    /// A configuration whose tokens are the bytes of a file that lives as long as the folder.
    fn with_file(bytes: &[u8], token_bytes: u8) -> (tempfile::TempDir, TrainConfig) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.bin");
        std::fs::write(&path, bytes).unwrap();
        let data = DataSource::File { path: path.to_str().unwrap().into(), token_bytes };
        (folder, TrainConfig { data, ..tiny() })
    }

    fn batches(config: &TrainConfig, share: DataShare, steps: usize) -> Vec<Batch> {
        let data = Data::open(config, share).unwrap();
        let micros = (0..steps).flat_map(|step| (0..config.accumulate).map(move |micro| (step, micro)));
        let fill = |(step, micro)| {
            let mut batch = Batch::new(Sequences { batch: config.batch, context: config.context });
            data.fill(step, micro, &mut batch).unwrap();
            batch
        };
        micros.map(fill).collect()
    }

    #[test]
    fn ranks_see_together_what_one_rank_with_their_batches_sees() {
        let ids: Vec<u8> = (0..900_u32).flat_map(|position| (position % 53).to_le_bytes()).collect();
        let (_folder, file) = with_file(&ids, 4);
        for config in [tiny(), file] {
            let config = TrainConfig { accumulate: 2, ..config };
            let world = 3;
            let whole = TrainConfig { batch: world * config.batch, ..config.clone() };
            let whole = batches(&whole, DataShare { rank: 0, world: 1 }, 2);
            let ranks: Vec<_> = (0..world).map(|rank| batches(&config, DataShare { rank, world }, 2)).collect();
            for (index, whole) in whole.iter().enumerate() {
                let inputs: Vec<u32> = ranks.iter().flat_map(|rank| rank[index].inputs.clone()).collect();
                let targets: Vec<u32> = ranks.iter().flat_map(|rank| rank[index].targets.clone()).collect();
                assert_eq!((&inputs, &targets), (&whole.inputs, &whole.targets));
            }
            assert_ne!(whole[0].inputs, whole[1].inputs, "micro-steps see different data");
        }
    }

    #[test]
    fn targets_are_the_tokens_that_follow() {
        let ids: Vec<u8> = (0..50_u16).flat_map(u16::to_le_bytes).collect();
        let (_folder, config) = with_file(&ids, 2);
        for batch in batches(&config, DataShare { rank: 0, world: 1 }, 5) {
            for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                assert_eq!(input + 1, *target);
            }
        }
    }

    #[test]
    fn the_synthetic_language_has_rules_and_rare_words() {
        let language = Synthetic::new(1, 1000);
        let mut tokens = vec![0; 200_000];
        language.sample(0, &mut tokens);
        let mut counts = vec![0_usize; 1000];
        tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let mut followers = vec![0_usize; 1000];
        let class = |token: u32| token as usize % CLASSES;
        let after = tokens.windows(2).filter(|pair| class(pair[0]) == 5);
        after.for_each(|pair| followers[pair[1] as usize] += 1);
        let share = |counts: &mut Vec<usize>| {
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts[..SUCCESSORS].iter().sum::<usize>() as f64 / counts.iter().sum::<usize>() as f64
        };
        assert!(share(&mut followers) > 0.75 && share(&mut counts) < 0.35);
        assert!(counts.iter().filter(|count| **count > 0).count() > 990);
        assert_ne!(Synthetic::new(2, 1000).by_rank, language.by_rank);
    }

    #[test]
    fn a_bad_token_file_is_named_with_what_is_wrong() {
        let share = DataShare { rank: 0, world: 1 };
        let mut ids = vec![0_u8; 2 * 40];
        ids[2 * 17] = 53;
        let rows: [(&[u8], u8, &[&str]); 5] = [
            (&ids, 2, &["tokens.bin", "token 17 is 53", "end at 52"]),
            (&ids[..2 * 13], 2, &["tokens.bin", "13 tokens", "needs 14"]),
            (&[], 4, &["tokens.bin", "0 tokens"]),
            (&ids[..31], 2, &["tokens.bin", "31 bytes", "2 bytes"]),
            (&ids, 0, &["tokens.bin", "ids of 0 bytes"]),
        ];
        for (bytes, token_bytes, words) in rows {
            let (_folder, config) = with_file(bytes, token_bytes);
            let error = Data::open(&config, share).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        let (folder, config) = with_file(&[], 2);
        drop(folder);
        let error = Data::open(&config, share).unwrap_err();
        assert!(error.to_string().contains("tokens.bin") && error.source().is_some(), "{error}");
    }
}
