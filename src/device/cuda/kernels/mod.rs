//! The kernels: CUDA C++ beside the functions that launch them, compiled for one GPU and one model's sizes.
//!
//! Each launcher checks that its buffers hold what the kernel reads and writes, so nothing above needs unsafe code.

mod attention;
mod check;
mod convert;
mod embedding;
mod links;
mod loss;
mod norm;
mod optimizer;
mod rotary;
mod swiglu;
mod weights;

use std::thread;

pub use attention::{AttentionKernels, AttentionSaved, AttentionSizes};
pub use check::CheckKernels;
pub use convert::ConvertKernels;
pub use embedding::{EmbeddingKernels, SortedTokens};
pub use links::{LinkKernels, pattern_word};
pub use loss::LossKernels;
pub use norm::{NormKernels, NormSaved};
pub use optimizer::{AdamWScalars, AdamWTensors, OptimizerKernels};
pub use rotary::RotaryKernels;
pub use swiglu::SwigluKernels;
pub use weights::WeightKernels;

use super::cache::{Cache, key};
use super::driver::Gpu;
use super::error::CudaError;
use super::module::Kernels;
use super::nvrtc::Nvrtc;

/// Architectures that rigscale is built for: each is compiled in the tests.
pub const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

/// Sizes that are constants in kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSizes {
    /// Width of the residual stream, a multiple of 8.
    pub width: usize,
    /// Inner width of the feed-forward network, a multiple of 8.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_size: usize,
    /// Token ids, a multiple of 8.
    pub vocabulary: usize,
}

/// A file of kernels, with the macros that it wants.
struct Source {
    file: &'static str,
    text: &'static str,
    macros: &'static [&'static str],
}

/// What each file is compiled after.
const PRELUDE: &str = include_str!("prelude.cuh");

const SOURCES: [Source; 10] = [
    Source { file: "embedding.cu", text: include_str!("embedding.cu"), macros: &["WIDTH"] },
    Source { file: "norm.cu", text: include_str!("norm.cu"), macros: &["WIDTH"] },
    Source { file: "rotary.cu", text: include_str!("rotary.cu"), macros: &["HEADS", "KV_HEADS", "HEAD_SIZE"] },
    Source { file: "swiglu.cu", text: include_str!("swiglu.cu"), macros: &["FFN"] },
    Source { file: "loss.cu", text: include_str!("loss.cu"), macros: &["VOCABULARY", "STAGED_MAX"] },
    Source { file: "optimizer.cu", text: include_str!("optimizer.cu"), macros: &[] },
    Source { file: "check.cu", text: include_str!("check.cu"), macros: &[] },
    Source { file: "weights.cu", text: include_str!("weights.cu"), macros: &[] },
    Source { file: "convert.cu", text: include_str!("convert.cu"), macros: &[] },
    Source { file: ATTENTION, text: include_str!("attention.cu"), macros: &["HEADS", "KV_HEADS", "HEAD_SIZE"] },
];

/// The one file that not every model can use.
const ATTENTION: &str = "attention.cu";

impl KernelSizes {
    fn of(&self, name: &str, architecture: &str) -> usize {
        match name {
            "STAGED_MAX" => loss::staged_max(architecture),
            "WIDTH" => self.width,
            "FFN" => self.ffn,
            "HEADS" => self.heads,
            "KV_HEADS" => self.kv_heads,
            "HEAD_SIZE" => self.head_size,
            _ => self.vocabulary,
        }
    }

    /// True if rigscale's own attention kernels take these heads.
    #[must_use]
    pub fn own_attention(&self) -> bool {
        [64, 128].contains(&self.head_size)
    }
}

/// Every kernel of a model, loaded on a GPU.
#[derive(Debug)]
pub struct KernelSet {
    /// Token embedding.
    pub embedding: EmbeddingKernels,
    /// RMSNorm.
    pub norm: NormKernels,
    /// Rotary positions.
    pub rotary: RotaryKernels,
    /// SwiGLU.
    pub swiglu: SwigluKernels,
    /// Cross-entropy.
    pub loss: LossKernels,
    /// AdamW and its norm.
    pub optimizer: OptimizerKernels,
    /// Numbers that are none.
    pub check: CheckKernels,
    /// Initial weights and fingerprints.
    pub weights: WeightKernels,
    /// Gradients in f32 and back.
    pub convert: ConvertKernels,
    /// Attention, where the heads have a size that it takes.
    pub attention: Option<AttentionKernels>,
}

impl KernelSet {
    /// Compiles what the cache does not hold for this version of NVRTC, and loads everything.
    ///
    /// # Errors
    /// A kernel does not compile or load.
    pub fn load(gpu: &Gpu, nvrtc: &Nvrtc, cache: &mut Cache, sizes: &KernelSizes) -> Result<Self, CudaError> {
        let wanted: Vec<&Source> =
            SOURCES.iter().filter(|source| source.file != ATTENTION || sizes.own_attention()).collect();
        let cubins = compiled(nvrtc, cache, &gpu.architecture(), sizes, &wanted)?;
        let mut loaded = wanted.iter().zip(&cubins).map(|(source, cubin)| Kernels::load(gpu, cubin, source.file));
        let mut next = || loaded.next().expect("a module for each file");
        let set = Self {
            embedding: EmbeddingKernels::of(&next()?, sizes)?,
            norm: NormKernels::of(&next()?, sizes)?,
            rotary: RotaryKernels::of(&next()?, sizes)?,
            swiglu: SwigluKernels::of(&next()?, sizes)?,
            loss: LossKernels::of(&next()?, sizes, &gpu.architecture())?,
            optimizer: OptimizerKernels::of(&next()?)?,
            check: CheckKernels::of(&next()?)?,
            weights: WeightKernels::of(&next()?)?,
            convert: ConvertKernels::of(&next()?)?,
            attention: if sizes.own_attention() { Some(AttentionKernels::of(&next()?, sizes)?) } else { None },
        };
        Ok(set)
    }
}

/// Machine code of each source, from the cache or compiled now, files side by side.
fn compiled(
    nvrtc: &Nvrtc,
    cache: &mut Cache,
    architecture: &str,
    sizes: &KernelSizes,
    sources: &[&Source],
) -> Result<Vec<Vec<u8>>, CudaError> {
    let names: Vec<String> =
        sources.iter().map(|source| cubin_name(source, architecture, sizes, &nvrtc.version())).collect();
    let cached: Vec<Option<Vec<u8>>> = names.iter().map(|name| cache.read(name)).collect();
    let fresh: Vec<Result<Option<Vec<u8>>, CudaError>> = thread::scope(|scope| {
        let compiling: Vec<_> = sources
            .iter()
            .zip(&cached)
            .map(|(source, cached)| {
                cached.is_none().then(|| scope.spawn(|| compile(nvrtc, source, architecture, sizes)))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("compiling does not panic");
        compiling.into_iter().map(|thread| thread.map(join).transpose()).collect()
    });
    let mut cubins = Vec::with_capacity(sources.len());
    for ((name, cached), fresh) in names.iter().zip(cached).zip(fresh) {
        if let Some(fresh) = &fresh? {
            cache.write(name, fresh);
            cubins.push(fresh.clone());
        } else {
            cubins.extend(cached);
        }
    }
    Ok(cubins)
}

fn cubin_name(source: &Source, architecture: &str, sizes: &KernelSizes, version: &str) -> String {
    let macros: Vec<String> =
        source.macros.iter().map(|name| format!("{name}={}", sizes.of(name, architecture))).collect();
    let key = key(&[PRELUDE, source.text, architecture, &macros.join(" "), version]);
    format!("{}-{architecture}-{key}.cubin", source.file.trim_end_matches(".cu"))
}

fn compile(nvrtc: &Nvrtc, source: &Source, architecture: &str, sizes: &KernelSizes) -> Result<Vec<u8>, CudaError> {
    let definitions: Vec<(&str, usize)> =
        source.macros.iter().map(|name| (*name, sizes.of(name, architecture))).collect();
    nvrtc.compile(source.file, &[PRELUDE, source.text].join("\n"), architecture, &definitions)
}

/// Machine code of one source without macros.
fn compiled_alone(nvrtc: &Nvrtc, cache: &mut Cache, architecture: &str, source: &Source) -> Result<Vec<u8>, CudaError> {
    let sizes = KernelSizes { width: 0, ffn: 0, heads: 0, kv_heads: 0, head_size: 0, vocabulary: 0 };
    let mut cubins = compiled(nvrtc, cache, architecture, &sizes, &[source])?;
    Ok(cubins.pop().unwrap_or_default())
}

/// Compiles every file of a model, and what measures links, for an architecture; the names of the files that were
/// compiled. Needs no GPU.
///
/// # Errors
/// NVRTC is missing, or a kernel does not compile.
pub fn compile_all(nvrtc: &Nvrtc, architecture: &str, sizes: &KernelSizes) -> Result<Vec<&'static str>, CudaError> {
    let wanted = SOURCES.iter().filter(|source| source.file != ATTENTION || sizes.own_attention());
    wanted
        .chain([&links::LINKS])
        .map(|source| compile(nvrtc, source, architecture, sizes).map(|_| source.file))
        .collect()
}

/// Blocks of a kernel that walks over `n` elements: enough for all, but no more than `most` for each multiprocessor.
fn blocks(gpu: &Gpu, n: usize, each: usize, most: usize) -> usize {
    n.div_ceil(each).clamp(1, most * gpu.multiprocessors())
}
