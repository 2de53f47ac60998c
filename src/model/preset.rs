//! The named models that rigscale trains.

use thiserror::Error;

use super::Shape;

/// A model by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// As given to `--model`.
    pub name: &'static str,
    /// Its sizes.
    pub shape: Shape,
    /// What it is for, in a few words.
    pub purpose: &'static str,
}

/// A model name that no preset has.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no model is called {asked:?}; the presets are {}", names())]
pub struct UnknownModel {
    /// The name that was asked for.
    pub asked: String,
}

const fn shape(layers: usize, width: usize, heads: usize, kv_heads: usize, ffn: usize, vocabulary: usize) -> Shape {
    Shape { layers, width, heads, kv_heads, ffn, vocabulary }
}

/// Every preset, smallest first.
pub const PRESETS: &[Preset] = &[
    Preset { name: "llama-tiny", shape: shape(4, 128, 2, 2, 352, 1024), purpose: "tests" },
    Preset { name: "llama-15m", shape: shape(6, 384, 6, 6, 1024, 6144), purpose: "CPU" },
    Preset { name: "llama-125m", shape: shape(12, 768, 12, 12, 2048, 32_000), purpose: "GPU, 4 GB" },
    Preset { name: "llama-350m", shape: shape(24, 1024, 16, 16, 2816, 32_000), purpose: "GPU, 8 GB" },
    Preset { name: "llama-1b", shape: shape(22, 2048, 32, 4, 5632, 32_000), purpose: "GPU, 24 GB" },
    Preset { name: "llama-3b", shape: shape(28, 3072, 24, 8, 8192, 32_000), purpose: "GPU, 48 GB" },
    Preset { name: "llama-7b", shape: shape(32, 4096, 32, 32, 11_008, 32_000), purpose: "GPU, 141 GB" },
    Preset { name: "llama-8b", shape: shape(32, 4096, 32, 8, 14_336, 128_256), purpose: "GPU, 141 GB" },
    Preset { name: "llama-13b", shape: shape(40, 5120, 40, 40, 13_824, 32_000), purpose: "GPU, 256 GB" },
];

/// The preset of that name.
///
/// # Errors
/// [`UnknownModel`], which lists the names there are.
pub fn preset(name: &str) -> Result<&'static Preset, UnknownModel> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| UnknownModel { asked: name.into() })
}

fn names() -> String {
    PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ")
}
