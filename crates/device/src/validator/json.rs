//! JSON as a token may contain it: no name twice, no deep nesting, nothing after the end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// Objects and arrays inside each other. Claims in the field have three or four.
const DEPTH_MAX: u8 = 16;

/// First number that a double cannot tell from its neighbor.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool,
    /// Any number; whole ones up to 2^53 are exact.
    Number(f64),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

/// Why bytes are no JSON that we take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum JsonError {
    #[error("not JSON")]
    Syntax,
    #[error("nested more than {DEPTH_MAX} deep")]
    TooDeep,
    #[error("the name {name:?} stands twice in one object")]
    Duplicate { name: String },
}

impl Json {
    /// Reads a value. UTF-8 only, no byte order mark, no lone surrogates.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        let fault = Cell::new(None);
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let seed = Strict { depth: 0, fault: &fault };
        let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
        value.map_err(|_| fault.take().unwrap_or(JsonError::Syntax))
    }

    /// The members of an object.
    pub(super) fn into_object(self) -> Option<BTreeMap<String, Self>> {
        match self {
            Self::Object(members) => Some(members),
            Self::Null | Self::Bool | Self::Number(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// The text of a string.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Null | Self::Bool | Self::Number(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// A `NumericDate` (RFC 7519 section 2) rounded down to seconds, if it is one from 1970 on.
    pub(super) fn as_seconds(&self) -> Option<u64> {
        match self {
            Self::Number(number) if number.is_sign_positive() && *number < EXACT_MAX => Some(number.floor() as u64),
            Self::Null | Self::Bool | Self::Number(_) | Self::String(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }
}

/// Reads one value at some depth; the fault tells more than serde's error can.
#[derive(Clone, Copy)]
struct Strict<'f> {
    depth: u8,
    fault: &'f Cell<Option<JsonError>>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            self.fault.set(Some(JsonError::TooDeep));
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let inner = self.deeper()?;
        let mut object = BTreeMap::new();
        // Names are compared decoded: "a" and "\u0061" are one name.
        while let Some(name) = members.next_key::<String>()? {
            match object.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(members.next_value_seed(inner)?);
                }
                Entry::Occupied(place) => {
                    self.fault.set(Some(JsonError::Duplicate { name: place.key().clone() }));
                    return Err(A::Error::custom("duplicate name"));
                }
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> JsonError {
        Json::parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn values_are_read() {
        let object = Json::parse(br#" {"a":[1,-2,1.5,"x\u0041",true,null],"b":{}} "#).unwrap().into_object().unwrap();
        let Some(Json::Array(items)) = object.get("a") else { panic!("no array") };
        assert_eq!(items[..2], [Json::Number(1.0), Json::Number(-2.0)]);
        assert_eq!(items[3].as_str(), Some("xA"));
        assert_eq!(object.get("b"), Some(&Json::Object(BTreeMap::new())));
    }

    #[test]
    fn a_name_may_not_stand_twice_however_it_is_written() {
        assert_eq!(fault(r#"{"a":1,"a":1}"#), JsonError::Duplicate { name: "a".into() });
        assert_eq!(fault(r#"{"a":1,"\u0061":1}"#), JsonError::Duplicate { name: "a".into() });
        assert_eq!(fault(r#"{"o":{"b":1,"b":2}}"#), JsonError::Duplicate { name: "b".into() });
        assert!(Json::parse(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(nested(16).as_bytes()).is_ok());
        assert_eq!(fault(&nested(17)), JsonError::TooDeep);
        assert_eq!(fault(&nested(100_000)), JsonError::TooDeep);
        assert_eq!(fault(&r#"{"a":"#.repeat(100_000)), JsonError::TooDeep);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "\u{feff}{}",
            "{}x",
            "{} {}",
            "{'a':1}",
            "{a:1}",
            "[1,]",
            "{\"a\":1,}",
            "NaN",
            "Infinity",
            "01",
            "+1",
            ".5",
            "1.",
            "0x1",
            "\"\\ud800\"",
            "\"\\udc00\\ud800\"",
            "\"\\x41\"",
            "\"a\nb\"",
            "// c\n1",
            "1e400",
            "nul",
            "[1 2]",
        ] {
            assert_eq!(fault(text), JsonError::Syntax, "{text:?}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), Err(JsonError::Syntax));
        assert_eq!(Json::parse(b"\xff\xfe{\0}\0"), Err(JsonError::Syntax));
    }

    #[test]
    fn dates_are_whole_seconds_within_reason() {
        let seconds = |text: &str| Json::parse(text.as_bytes()).unwrap().as_seconds();
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds("1700000000"), Some(1_700_000_000));
        assert_eq!(seconds("1700000000.9"), Some(1_700_000_000));
        assert_eq!(seconds("1.7e9"), Some(1_700_000_000));
        assert_eq!(seconds("9007199254740991"), Some((1 << 53) - 1));
        for text in
            ["-1", "-0.0", "9007199254740992", "18446744073709551616", "1e300", "\"1\"", "true", "null", "[1]", "{}"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
