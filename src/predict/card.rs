//! The catalogue of GPU models, `topologies/gpus.yaml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::topology::{Generation, Lanes, Width, parse_yaml};
use crate::units::{Bytes, BytesPerSecond, FlopsPerSecond, Watts};

use super::PredictError;
use super::platform::Verified;
use super::quantity::{read_flops, read_power, read_rate, read_size, read_some_flops, read_some_rate};

/// The catalogue, as it lies in the repository.
const CATALOGUE: &str = include_str!("../../topologies/gpus.yaml");

/// A GPU model. Matrix rates are dense, without sparsity, as the data sheet states them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// As given to `--gpu`; filled in from the key of the catalogue.
    #[serde(skip_deserializing)]
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Compute capability times ten, as NCCL counts: 86 is Ampere, 89 Ada, 90 Hopper, 120 Blackwell.
    pub sm: u32,
    /// Memory.
    #[serde(deserialize_with = "read_size")]
    pub memory: Bytes,
    /// Rate of that memory.
    #[serde(deserialize_with = "read_rate")]
    pub memory_rate: BytesPerSecond,
    /// Matrix rate in bf16 with f32 sums.
    #[serde(deserialize_with = "read_flops")]
    pub bf16: FlopsPerSecond,
    /// Matrix rate in TF32.
    #[serde(default, deserialize_with = "read_some_flops")]
    pub tf32: Option<FlopsPerSecond>,
    /// Matrix rate in fp8, where the card has it.
    #[serde(default, deserialize_with = "read_some_flops")]
    pub fp8: Option<FlopsPerSecond>,
    /// Matrix rate in fp4, where the card has it.
    #[serde(default, deserialize_with = "read_some_flops")]
    pub fp4: Option<FlopsPerSecond>,
    /// PCIe generation.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// PCIe lanes.
    pub width: Width,
    /// True where the stock driver lets the card reach another one over PCIe.
    pub peer: bool,
    /// Rate of its NVLink bridge in one direction, where it takes one.
    #[serde(default, deserialize_with = "read_some_rate")]
    pub nvlink: Option<BytesPerSecond>,
    /// Board power.
    #[serde(deserialize_with = "read_power")]
    pub power: Watts,
    /// Where the figures are from.
    pub source: String,
    /// How far they were checked.
    pub verified: Verified,
}

impl Card {
    /// What its PCIe connector can do.
    #[must_use]
    pub fn lanes(&self) -> Lanes {
        Lanes { generation: self.generation, width: self.width }
    }
}

static CARDS: LazyLock<Result<BTreeMap<String, Card>, String>> = LazyLock::new(|| {
    let mut cards: BTreeMap<String, Card> =
        parse_yaml(CATALOGUE, "topologies/gpus.yaml", "each card is a map of quantities with units")
            .map_err(|error| error.to_string())?;
    cards.iter_mut().for_each(|(name, card)| card.name.clone_from(name));
    Ok(cards)
});

/// Every card of the catalogue, by name.
///
/// # Panics
/// The catalogue inside this binary does not read; a test holds that it does.
#[must_use]
pub fn cards() -> &'static BTreeMap<String, Card> {
    match &*CARDS {
        Ok(cards) => cards,
        Err(error) => panic!("the catalogue of GPUs does not read: {error}"),
    }
}

/// The card of that name.
///
/// # Errors
/// [`PredictError::UnknownCard`], which lists those that come near.
pub fn card(name: &str) -> Result<&'static Card, PredictError> {
    cards().get(name).ok_or_else(|| unknown(name))
}

pub(super) fn unknown(name: &str) -> PredictError {
    let spoken = words(name).join("");
    // names that hold the same number come first
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    let near = |card: &&String| {
        let joined = words(card).join("");
        joined == spoken || (3 <= digits.len() && card.contains(&digits[..3])) || joined.contains(&spoken)
    };
    let mut known: Vec<&str> = cards().keys().filter(near).map(String::as_str).collect();
    if known.is_empty() {
        known = cards().keys().map(String::as_str).collect();
    }
    PredictError::UnknownCard { asked: name.to_owned(), known: known.join(", ") }
}

/// Words of a product's name that tell no card from another: the maker, the series, the chip.
const SAY_NOTHING: &[&str] = &[
    "nvidia",
    "corporation",
    "geforce",
    "quadro",
    "generation",
    "edition",
    "workstation",
    "blackwell",
    "gpu",
    "graphics",
];

/// The words of a name that tell it from others, in lower case, without a chip such as `ga102gl`.
fn words(name: &str) -> Vec<String> {
    let chip = |word: &str| {
        let mut letters = word.chars();
        let makes = ["tu", "ga", "ad", "gh", "gb"].iter().any(|make| word.starts_with(make));
        letters.by_ref().nth(1);
        makes && 3 <= letters.take_while(char::is_ascii_digit).count()
    };
    let name = name.to_lowercase();
    let words = name.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !word.is_empty() && !SAY_NOTHING.contains(word) && !chip(word)).map(str::to_owned).collect()
}

/// The card that a driver or the PCI ID database calls so: `NVIDIA GeForce RTX 4090` is `rtx-4090`. Every word that tells
/// cards apart must match: an RTX 3080 Ti, a laptop's or a Max-Q card is not the one without those words.
#[must_use]
pub fn card_called(product: &str) -> Option<&'static Card> {
    let sorted = |name: &str| {
        let mut words = words(name);
        words.sort_unstable();
        words
    };
    let product = sorted(product);
    cards().values().find(|card| sorted(&card.title) == product)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_reads_and_its_figures_are_possible() {
        assert!(30 <= cards().len());
        for card in cards().values() {
            assert!((20e12..3e15).contains(&card.bf16.0), "{}", card.name);
            assert!((200e9..9e12).contains(&card.memory_rate.0), "{}", card.name);
            assert!((75..=121).contains(&card.sm), "{}", card.name);
            assert!(!card.source.is_empty(), "{}", card.name);
            assert!(card.tf32.is_none_or(|tf32| tf32.0 <= card.bf16.0), "{}", card.name);
            assert!(card.fp8.is_none_or(|fp8| card.bf16.0 < fp8.0), "{}", card.name);
        }
    }

    #[test]
    fn products_are_found_by_what_the_driver_calls_them() {
        let rows = [
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
            ("NVIDIA RTX A6000", "rtx-a6000"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
            ("NVIDIA H100 PCIe", "h100-pcie"),
            ("NVIDIA L40S", "l40s"),
            ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000-max-q"),
            ("RTX PRO 6000 Blackwell Max-Q", "rtx-pro-6000-max-q"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
            ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
            ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
            ("GA102GL [RTX A6000]", "rtx-a6000"),
            ("Quadro RTX 8000", "rtx-8000"),
        ];
        for (product, name) in rows {
            assert_eq!(card_called(product).map(|card| card.name.as_str()), Some(name), "{product}");
        }
        let others = [
            "Matrox G200",
            "NVIDIA GeForce RTX 3080 Ti",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA RTX 4000 SFF Ada Generation",
            "NVIDIA H100 80GB HBM3",
        ];
        for product in others {
            assert_eq!(card_called(product).map(|card| &card.name), None, "{product}");
        }
    }

    #[test]
    fn an_unknown_card_is_answered_with_those_that_come_near() {
        let said = card("rtx-4091").unwrap_err().to_string();
        assert!(said.contains("rtx-4091") && said.contains("rtx-4090"), "{said}");
        let said = card("rtx4090").unwrap_err().to_string();
        assert!(said.contains("rtx-4090") && !said.contains("a100"), "{said}");
    }
}
