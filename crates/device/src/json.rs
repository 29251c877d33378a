//! JSON as tokens and key sets may contain it: no name twice, no deep nesting, nothing after the end.
//!
//! Texts are borrowed from the bytes they were read from, unless escapes had to be undone.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// Objects and arrays inside each other. Claims in the field have three or four.
const DEPTH_MAX: u8 = 16;

/// First integer that not every reader of JSON can tell from its neighbor (RFC 7493 section 2.2).
const EXACT_MAX: u64 = 1 << 53;

/// Members up to which an object is searched for repetitions pair by pair; beyond it they are sorted.
const PAIRWISE_MAX: usize = 16;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool,
    /// A whole number from 0 on, written without fraction and exponent.
    Integer(u64),
    /// Any other number. None of them means anything here.
    Number,
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Members<'a>),
}

/// The members of an object, in the order in which they stand; no name twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// Why bytes are no JSON that we take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum JsonError {
    #[error("not JSON")]
    Syntax,
    #[error("nested more than {DEPTH_MAX} deep")]
    TooDeep,
    #[error("the name {name:?} stands twice in one object")]
    Duplicate { name: String },
}

impl<'a> Json<'a> {
    /// Reads a value. UTF-8 only, no byte order mark, no lone surrogates.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(bytes).map_err(|_| JsonError::Syntax)?;
        let fault = Cell::new(None);
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let seed = Strict { depth: 0, fault: &fault };
        let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
        value.map_err(|_| fault.take().unwrap_or(JsonError::Syntax))
    }

    /// The members of an object.
    pub(crate) fn into_object(self) -> Option<Members<'a>> {
        match self {
            Self::Object(members) => Some(members),
            Self::Null | Self::Bool | Self::Integer(_) | Self::Number | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// The text of a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Null | Self::Bool | Self::Integer(_) | Self::Number | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// The text of a string, to be kept.
    pub(crate) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::String(text) => Some(text),
            Self::Null | Self::Bool | Self::Integer(_) | Self::Number | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// A `NumericDate` (RFC 7519 section 2), if it is a whole second from 1970 on that every reader agrees about.
    ///
    /// Fractions and exponents are refused: readers round them differently, and no issuer needs them.
    pub(crate) const fn as_seconds(&self) -> Option<u64> {
        match self {
            Self::Integer(seconds) if *seconds < EXACT_MAX => Some(*seconds),
            Self::Null
            | Self::Bool
            | Self::Integer(_)
            | Self::Number
            | Self::String(_)
            | Self::Array(_)
            | Self::Object(_) => None,
        }
    }
}

impl<'a> Members<'a> {
    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Takes out the value of a name.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Json<'a>> {
        let place = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The first name found that stands twice. Names are compared decoded: "a" and "\u0061" are one name.
    fn repeated(&self) -> Option<&str> {
        if self.0.len() <= PAIRWISE_MAX {
            let mut names = self.0.iter().map(|(name, _)| &**name);
            while let Some(name) = names.next() {
                if names.clone().any(|other| other == name) {
                    return Some(name);
                }
            }
            return None;
        }
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names.array_windows().find(|[one, other]| one == other).map(|[name, _]| *name)
    }
}

impl<'a> IntoIterator for Members<'a> {
    type Item = (Cow<'a, str>, Json<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
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
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json<'de>, E> {
        Ok(Json::Integer(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json<'de>, E> {
        Ok(Json::Number)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::String(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json<'de>, A::Error> {
        let inner = self.deeper()?;
        let mut object = Members::default();
        while let Some(name) = members.next_key_seed(Name)? {
            let value = members.next_value_seed(inner)?;
            if object.0.is_empty() {
                object.0.reserve(8);
            }
            object.0.push((name, value));
        }
        if let Some(name) = object.repeated() {
            self.fault.set(Some(JsonError::Duplicate { name: name.to_owned() }));
            return Err(A::Error::custom("duplicate name"));
        }
        Ok(Json::Object(object))
    }
}

/// Reads the name of a member.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
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
        let object =
            Json::parse(br#" {"a":[1,-2,1.5,"x\u0041",true,null],"b":{},"\u0063":"\u20ac"} "#).unwrap().into_object();
        let object = object.unwrap();
        let Some(Json::Array(items)) = object.get("a") else { panic!("no array") };
        assert_eq!(items[..3], [Json::Integer(1), Json::Number, Json::Number]);
        assert_eq!(items[3].as_str(), Some("xA"));
        assert_eq!(object.get("b"), Some(&Json::Object(Members::default())));
        assert_eq!(object.get("c").and_then(Json::as_str), Some("€"));
    }

    #[test]
    fn a_name_may_not_stand_twice_however_it_is_written() {
        assert_eq!(fault(r#"{"a":1,"a":1}"#), JsonError::Duplicate { name: "a".into() });
        assert_eq!(fault(r#"{"a":1,"\u0061":1}"#), JsonError::Duplicate { name: "a".into() });
        assert_eq!(fault(r#"{"o":{"b":1,"b":2}}"#), JsonError::Duplicate { name: "b".into() });
        assert_eq!(fault(r#"{"o":[[{"b":1,"c":2,"b":2}]]}"#), JsonError::Duplicate { name: "b".into() });
        assert!(Json::parse(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
        // However many stand between the two.
        for count in [2, PAIRWISE_MAX - 2, PAIRWISE_MAX, 500] {
            let many: Vec<String> = (0..count).map(|number| format!(r#""n{number}":0,"#)).collect();
            let many = many.concat();
            assert!(Json::parse(format!(r#"{{{many}"z":0}}"#).as_bytes()).is_ok());
            assert_eq!(fault(&format!(r#"{{{many}"n0":0}}"#)), JsonError::Duplicate { name: "n0".into() });
        }
    }

    /// Row 30. The stack is smaller than that of any thread that validates tokens.
    #[test]
    fn nesting_is_bounded_on_a_small_stack() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let judge = move || {
            assert!(Json::parse(nested(16).as_bytes()).is_ok());
            assert_eq!(fault(&nested(17)), JsonError::TooDeep);
            assert_eq!(fault(&nested(100_000)), JsonError::TooDeep);
            assert_eq!(fault(&"[".repeat(100_000)), JsonError::TooDeep);
            assert_eq!(fault(&r#"{"a":"#.repeat(100_000)), JsonError::TooDeep);
        };
        std::thread::Builder::new().stack_size(64 * 1024).spawn(judge).unwrap().join().unwrap();
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
            "{1:1}",
            "{\"a\" 1}",
            "\"\\u00g0\"",
            "\u{0}",
            "{}\u{0}",
        ] {
            assert_eq!(fault(text), JsonError::Syntax, "{text:?}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), Err(JsonError::Syntax));
        assert_eq!(Json::parse(b"\xff\xfe{\0}\0"), Err(JsonError::Syntax));
        // Overlong, and a surrogate in UTF-8.
        assert_eq!(Json::parse(b"\"\xc0\x80\""), Err(JsonError::Syntax));
        assert_eq!(Json::parse(b"\"\xed\xa0\x80\""), Err(JsonError::Syntax));
    }

    #[test]
    fn dates_are_whole_seconds_within_reason() {
        let seconds = |text: &str| Json::parse(text.as_bytes()).unwrap().as_seconds();
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds("1700000000"), Some(1_700_000_000));
        assert_eq!(seconds("9007199254740991"), Some((1 << 53) - 1));
        for text in [
            "1700000000.0",
            "1700000000.9",
            "17e8",
            "1.7E+9",
            "-1",
            "-0",
            "-0.0",
            "9007199254740992",
            "18446744073709551615",
            "18446744073709551616",
            "1e300",
            "\"1\"",
            "true",
            "null",
            "[1]",
            "{}",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
