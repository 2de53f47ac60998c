//! Several texts about one machine made one topology: what one does not tell is taken from the next.
//!
//! Topologies are merged as JSON, so that a fact that is added later is merged without a line here.

use serde_json::Value;

use super::{PciAddress, Topology};

/// Lists whose elements are told apart by these keys; any other list is taken whole.
const KEYS: [(&str, &[&str]); 6] = [
    ("gpus", &["address"]),
    ("bridges", &["address"]),
    ("numa", &["node"]),
    ("pairs", &["a", "b"]),
    ("peers", &["from", "to"]),
    ("nvlinks", &["gpu", "target"]),
];

impl Topology {
    /// This machine, and of what it does not tell, what `other` tells; where both tell, this one counts. Where one names
    /// GPUs by index only, they are the NVIDIA GPUs of the other in the order of their addresses, as nvidia-smi counts.
    /// None where these are not as many, so that nobody knows which is which.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Option<Self> {
        let (mut ours, mut theirs) = (serde_json::to_value(self).ok()?, serde_json::to_value(other).ok()?);
        let (named, indexed) = (self.addresses(false), other.addresses(true));
        if !named.is_empty() && !indexed.is_empty() {
            rename(&mut theirs, &indexed, &named)?;
        }
        let (indexed, named) = (self.addresses(true), other.addresses(false));
        if !named.is_empty() && !indexed.is_empty() {
            rename(&mut ours, &indexed, &named)?;
        }
        fill(&mut ours, theirs, "");
        let merged: Self = serde_json::from_value(ours).ok()?;
        let mut merged = match merged.flaw() {
            Some(_) => return None,
            None => merged,
        };
        merged.gpus.sort_by_key(|gpu| gpu.address);
        merged.bridges.sort_by_key(|bridge| bridge.address);
        Some(merged.derived())
    }

    /// Addresses of the NVIDIA GPUs that stand for an index, or that do not.
    fn addresses(&self, indexed: bool) -> Vec<PciAddress> {
        let mut addresses: Vec<PciAddress> = self.nvidia_gpus().map(|gpu| gpu.address).collect();
        addresses.retain(|address| address.is_index() == indexed);
        addresses.sort_unstable();
        addresses
    }
}

/// Puts the addresses `to` in the place of `from` wherever they stand; none where they are not as many.
fn rename(value: &mut Value, from: &[PciAddress], to: &[PciAddress]) -> Option<()> {
    if from.len() != to.len() {
        return None;
    }
    let names: Vec<(String, String)> = from.iter().zip(to).map(|(a, b)| (a.to_string(), b.to_string())).collect();
    replace(value, &names);
    Some(())
}

fn replace(value: &mut Value, names: &[(String, String)]) {
    match value {
        Value::String(text) => {
            if let Some((_, to)) = names.iter().find(|(from, _)| from == text) {
                text.clone_from(to);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, names)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// True for a fact that is missing because nobody told it or asked for it.
fn is_untold(value: &Value) -> bool {
    matches!(value.get("missing").and_then(Value::as_str), Some("untold" | "not_asked"))
}

/// True for a fact that is missing for any reason.
fn is_missing(value: &Value) -> bool {
    value.get("missing").is_some()
}

fn fill(ours: &mut Value, theirs: Value, key: &str) {
    if is_untold(ours) || (is_missing(ours) && !is_missing(&theirs)) {
        if !is_untold(&theirs) {
            *ours = theirs;
        }
        return;
    }
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) if !theirs.contains_key("missing") => {
            for (key, value) in theirs {
                match ours.get_mut(&key) {
                    Some(known) => fill(known, value, &key),
                    None => drop(ours.insert(key, value)),
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            let keys = KEYS.iter().find(|(name, _)| *name == key).map(|(_, keys)| *keys);
            let Some(keys) = keys else { return };
            for item in theirs {
                let same = |known: &Value| keys.iter().all(|key| known.get(key) == item.get(key));
                match ours.iter_mut().find(|known| same(known)) {
                    Some(known) => fill(known, item, ""),
                    None => ours.push(item),
                }
            }
        }
        _ => {}
    }
}
