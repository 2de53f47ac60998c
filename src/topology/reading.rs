//! A fact of a machine, or the reason why it is missing.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A fact, or why there is none. On disk: the fact itself, or `{missing: why, detail: …}`; see [`Fact`].
pub type Reading<T> = Result<T, Missing>;

/// Why a fact is not there, and what was seen instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The kind of absence.
    #[serde(rename = "missing")]
    pub why: Why,
    /// The question that went unanswered, or the text that could not be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The kinds of absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The machine has no such file, folder or device.
    Absent,
    /// It is there, but this user may not read it.
    Denied,
    /// The device or driver does not offer it.
    Unsupported,
    /// It was read and makes no sense.
    Garbled,
    /// It was never asked: the capture or the file is older than the question.
    NotAsked,
    /// What was imported does not hold such facts, whatever the machine is like; the detail names its kind.
    Untold,
}

impl Missing {
    /// A missing fact and what was asked or seen.
    #[must_use]
    pub fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into() }
    }

    /// What stands for a fact that an older version did not ask for.
    #[must_use]
    pub fn not_asked() -> Self {
        Self::new(Why::NotAsked, "")
    }

    /// A fact that an imported file of this kind cannot hold: `nvidia-smi topo -m`, `lspci -vvv`, …
    #[must_use]
    pub fn untold(kind: &str) -> Self {
        Self::new(Why::Untold, kind)
    }

    /// True where the imported file cannot hold the fact: nothing was seen that could be judged.
    #[must_use]
    pub fn is_untold(&self) -> bool {
        self.why == Why::Untold
    }
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Absent => "absent",
            Self::Denied => "denied (needs root)",
            Self::Unsupported => "unsupported",
            Self::Garbled => "garbled",
            Self::NotAsked => "never asked (of an older version)",
            Self::Untold => "not told",
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.is_empty() {
            true => write!(out, "{}", self.why),
            false if self.is_untold() => write!(out, "not in {}", self.detail),
            false => write!(out, "{}: {}", self.why, self.detail),
        }
    }
}

/// How a [`Reading`] is spelled on disk, for `#[serde(with = "Fact::<T>")]`: the fact itself, or a map whose first key
/// is `missing`. (Plain `Result` would write the tags `Ok` and `Err`.)
#[derive(Debug)]
pub struct Fact<T>(PhantomData<T>);

impl<T: Serialize> Fact<T> {
    /// Writes the fact, or the reason why it is missing.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(reading: &Reading<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match reading {
            Ok(fact) => fact.serialize(serializer),
            Err(missing) => missing.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Fact<T> {
    /// Reads the fact, or the reason why it is missing.
    ///
    /// # Errors
    /// Those of the fact's own type, or of [`Missing`].
    pub fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reading<T>, D::Error> {
        deserializer.deserialize_any(FactVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Fact<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Reading_of_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (fact, missing) = (generator.subschema_for::<T>(), generator.subschema_for::<Missing>());
        json_schema!({ "anyOf": [fact, missing] })
    }
}

/// Hands everything to `T`, but for a map that begins with `missing` or with its `detail`.
struct FactVisitor<T>(PhantomData<T>);

/// Scalars go to `T` unchanged.
macro_rules! scalars {
    ($($visit:ident: $scalar:ty),*) => {$(
        fn $visit<E: Error>(self, scalar: $scalar) -> Result<Self::Value, E> {
            T::deserialize(scalar.into_deserializer()).map(Ok)
        }
    )*};
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for FactVisitor<T> {
    type Value = Reading<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the fact itself, or `{missing: absent, detail: why}`")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_string: String);

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Err(E::invalid_type(serde::de::Unexpected::Unit, &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(items)).map(Ok)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let first: Option<String> = map.next_key()?;
        // In either order: no fact has a part of the name `detail`.
        let missing = matches!(first.as_deref(), Some("missing" | "detail"));
        let whole = MapAccessDeserializer::new(Resumed { first, rest: map });
        match missing {
            true => Missing::deserialize(whole).map(Err),
            false => T::deserialize(whole).map(Ok),
        }
    }
}

/// A map whose first key was already looked at.
struct Resumed<A> {
    first: Option<String>,
    rest: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Resumed<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        match self.first.take() {
            Some(key) => seed.deserialize(key.into_deserializer()).map(Some),
            None => self.rest.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.rest.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        a: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(with = "Fact::<u32>")]
        number: Reading<u32>,
        #[serde(with = "Fact::<Vec<String>>")]
        list: Reading<Vec<String>>,
        #[serde(with = "Fact::<Inner>")]
        inner: Reading<Inner>,
    }

    #[test]
    fn a_reading_is_the_fact_or_the_reason() {
        let text = "number: 3\nlist:\n  missing: denied\n  detail: /sys/x\ninner:\n  a: 1\n";
        let outer: Outer = serde_saphyr::from_str(text).unwrap();
        assert_eq!(outer.number, Ok(3));
        assert_eq!(outer.list, Err(Missing::new(Why::Denied, "/sys/x")));
        assert_eq!(outer.inner, Ok(Inner { a: 1 }));
        assert_eq!(serde_saphyr::to_string(&outer).unwrap(), text);
        let json = serde_json::to_string(&outer).unwrap();
        assert_eq!(serde_json::from_str::<Outer>(&json).unwrap(), outer);
    }

    #[test]
    fn a_wrong_fact_is_an_error_with_its_place() {
        let bad = [("number: x\nlist: []\ninner: {a: 1}\n", 1), ("number: 1\nlist: []\ninner: {b: 1}\n", 3)];
        for (text, line) in bad {
            let error = serde_saphyr::from_str::<Outer>(text).unwrap_err();
            assert_eq!(error.location().map(|at| at.line()), Some(line), "{error}");
        }
        for text in ["number: {missing: gone}\nlist: []\ninner: {a: 1}\n", "number: \nlist: []\ninner: {a: 1}\n"] {
            let error = serde_saphyr::from_str::<Outer>(text).unwrap_err();
            assert_eq!(error.location().map(|at| at.line()), Some(1), "{error}");
        }
    }
}
