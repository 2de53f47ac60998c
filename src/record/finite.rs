//! Finds a number that is not finite before it is spelled: JSON has no such numbers, and serde_json writes them as
//! `null`, which looks like an absence.

use std::fmt::Display;

use serde::ser::{Error, Impossible};
use serde::{Serialize, Serializer, ser};

/// A number that is NaN or infinite, by the path to its field.
#[derive(Debug, thiserror::Error)]
#[error("field `{field}` is not a finite number")]
pub(super) struct NotFinite {
    /// `points[0].efficiency.low`.
    pub(super) field: String,
}

/// Visits every number of `record`.
///
/// # Errors
/// The first that is not finite.
pub(super) fn check_finite<T: Serialize + ?Sized>(record: &T) -> Result<(), NotFinite> {
    record.serialize(Visit)
}

impl NotFinite {
    /// The same, seen from one level further out.
    fn inside(mut self, outer: &str) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{outer}{dot}{}", self.field);
        self
    }
}

impl Error for NotFinite {
    /// A value that cannot be serialized at all; whoever spells it next says why.
    fn custom<T: Display>(message: T) -> Self {
        Self { field: message.to_string() }
    }
}

/// Serializes into nothing.
struct Visit;

/// One level of a record: how many elements were visited, and the key of the one at hand.
#[derive(Default)]
struct Level {
    visited: usize,
    key: String,
}

impl Level {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
        let index = self.visited;
        self.visited += 1;
        check_finite(value).map_err(|wrong| wrong.inside(&format!("[{index}]")))
    }
}

/// Methods for values that hold no float.
macro_rules! no_float {
    ($($method:ident($type:ty)),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), NotFinite> {
            Ok(())
        })*
    };
}

impl Serializer for Visit {
    type Ok = ();
    type Error = NotFinite;
    type SerializeSeq = Level;
    type SerializeTuple = Level;
    type SerializeTupleStruct = Level;
    type SerializeTupleVariant = Impossible<(), NotFinite>;
    type SerializeMap = Level;
    type SerializeStruct = Level;
    type SerializeStructVariant = Level;

    no_float! {
        serialize_bool(bool), serialize_char(char), serialize_str(&str), serialize_bytes(&[u8]),
        serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_u8(u8), serialize_u16(u16), serialize_u32(u32), serialize_u64(u64),
        serialize_unit_struct(&'static str),
    }

    fn serialize_f32(self, value: f32) -> Result<(), NotFinite> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), NotFinite> {
        if value.is_finite() { Ok(()) } else { Err(NotFinite { field: String::new() }) }
    }

    fn serialize_none(self) -> Result<(), NotFinite> {
        Ok(())
    }

    fn serialize_unit(self) -> Result<(), NotFinite> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), NotFinite> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotFinite> {
        check_finite(value)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), NotFinite> {
        check_finite(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NotFinite> {
        check_finite(value).map_err(|wrong| wrong.inside(variant))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NotFinite> {
        Err(NotFinite::custom(variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Level, NotFinite> {
        Ok(Level::default())
    }
}

/// The traits of serde for what holds elements without a name.
macro_rules! elements {
    ($($of:ident::$method:ident),* $(,)?) => {
        $(impl ser::$of for Level {
            type Ok = ();
            type Error = NotFinite;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
                self.element(value)
            }

            fn end(self) -> Result<(), NotFinite> {
                Ok(())
            }
        })*
    };
}

elements! {
    SerializeSeq::serialize_element, SerializeTuple::serialize_element, SerializeTupleStruct::serialize_field,
}

/// The traits of serde for what holds named fields.
macro_rules! fields {
    ($($of:ident),* $(,)?) => {
        $(impl ser::$of for Level {
            type Ok = ();
            type Error = NotFinite;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), NotFinite> {
                check_finite(value).map_err(|wrong| wrong.inside(key))
            }

            fn end(self) -> Result<(), NotFinite> {
                Ok(())
            }
        })*
    };
}

fields! { SerializeStruct, SerializeStructVariant }

impl ser::SerializeMap for Level {
    type Ok = ();
    type Error = NotFinite;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotFinite> {
        self.key = serde_json::to_string(key).unwrap_or_default().trim_matches('"').to_owned();
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
        check_finite(value).map_err(|wrong| wrong.inside(&self.key))
    }

    fn end(self) -> Result<(), NotFinite> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    struct Record {
        name: &'static str,
        points: Vec<Point>,
        by_name: BTreeMap<String, Option<f64>>,
        kind: Kind,
    }

    #[derive(Serialize)]
    struct Point {
        range: (f64, f32),
    }

    #[derive(Serialize)]
    #[serde(tag = "kind")]
    enum Kind {
        Fixed { at: f64 },
    }

    #[test]
    fn the_field_that_is_not_finite_is_named_wherever_it_is() {
        let record = |low, high, optional, at| Record {
            name: "NaN",
            points: vec![Point { range: (1.0, 2.0) }, Point { range: (low, high) }],
            by_name: BTreeMap::from([("loss".to_owned(), optional), ("none".to_owned(), None)]),
            kind: Kind::Fixed { at },
        };
        assert!(check_finite(&record(0.0, 0.0, Some(-1e308), 0.0)).is_ok());
        let rows = [
            (record(f64::NAN, 0.0, None, 0.0), "points[1].range[0]"),
            (record(0.0, f32::INFINITY, None, 0.0), "points[1].range[1]"),
            (record(0.0, 0.0, Some(f64::NAN), 0.0), "by_name.loss"),
            (record(0.0, 0.0, None, f64::NEG_INFINITY), "kind.at"),
        ];
        for (record, field) in rows {
            assert_eq!(check_finite(&record).unwrap_err().field, field);
        }
    }
}
