//! What every token of a realm says, whoever it is for.
//!
//! # Shape
//!
//! `issuer/{realm}/template.json`, beside the keys, each member optional. In texts `{sub}`, `{device}` and `{realm}` stand
//! for what a token is about:
//!
//! ```text
//! {"typ": "at+jwt", "lifetime": 3600, "revoke_on_renew": false, "claims": {"scope": "read", "site": "{realm}"}}
//! ```

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Its file, beside those of the keys.
pub(super) const TEMPLATE_FILE: &str = "template.json";

/// The `typ` of tokens unless chosen: that of access tokens (RFC 9068), so that no other JWT is taken for one.
pub const TYP_DEFAULT: &str = "at+jwt";

/// Claims that only the issuer itself sets.
pub const RESERVED: [&str; 9] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf", "client_id"];

/// Claims of a template or a request.
const CLAIMS_MAX: usize = 64;

/// Bytes of them: a token has at most 8 KiB, and a third of that is base64.
const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// Bytes of a `typ`.
const TYP_BYTES_MAX: usize = 64;

/// What every token of a realm says.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The `typ` in the header.
    pub typ: String,
    /// How long a token lives, if not as the server is configured.
    pub lifetime: Option<Duration>,
    /// Whether the token that a renewal replaces is revoked with it.
    pub revoke_on_renew: bool,
    /// Claims besides those that the issuer sets.
    pub claims: Map<String, Value>,
}

impl Default for Template {
    /// No claims of its own.
    fn default() -> Self {
        Self { typ: TYP_DEFAULT.to_owned(), lifetime: None, revoke_on_renew: false, claims: Map::new() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateFile {
    typ: Option<String>,
    lifetime: Option<u64>,
    #[serde(default)]
    revoke_on_renew: bool,
    #[serde(default)]
    claims: Map<String, Value>,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let file: TemplateFile =
            serde_json::from_str(text).map_err(|error| TemplateError::Json { what: error.to_string() })?;
        Self::check(&file.claims)?;
        let typ = file.typ.unwrap_or_else(|| TYP_DEFAULT.to_owned());
        let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if typ.is_empty() || typ.len() > TYP_BYTES_MAX || !typ.bytes().all(visible) {
            return Err(TemplateError::Typ { typ });
        }
        if file.lifetime == Some(0) {
            return Err(TemplateError::Lifetime);
        }
        Ok(Self {
            typ,
            lifetime: file.lifetime.map(Duration::from_secs),
            revoke_on_renew: file.revoke_on_renew,
            claims: file.claims,
        })
    }

    /// Refuses claims that only the issuer sets, and more than a token can carry.
    pub fn check(claims: &Map<String, Value>) -> Result<(), TemplateError> {
        if let Some(name) = RESERVED.into_iter().find(|name| claims.contains_key(*name)) {
            return Err(TemplateError::Reserved { name });
        }
        let bytes = Value::Object(claims.clone()).to_string().len();
        if claims.len() > CLAIMS_MAX || bytes > CLAIMS_BYTES_MAX {
            return Err(TemplateError::TooMuch { claims: claims.len(), bytes });
        }
        Ok(())
    }

    /// The claims for one token: those of the template, and over them those asked for.
    #[must_use]
    pub fn fill(&self, names: &[(&str, &str)], asked: Map<String, Value>) -> Map<String, Value> {
        let mut claims = self.claims.clone();
        claims.values_mut().for_each(|value| fill(value, names));
        claims.extend(asked);
        claims
    }
}

fn fill(value: &mut Value, names: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (name, meaning) in names {
                *text = text.replace(&format!("{{{name}}}"), meaning);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, names)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Why claims cannot be used; whoever wrote them mends it.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// Not the JSON that a template is.
    #[error("it is no template: {what}")]
    Json {
        /// What is wrong.
        what: String,
    },
    /// A claim that only the issuer sets.
    #[error("the claim {name} is set by the issuer alone")]
    Reserved {
        /// Which.
        name: &'static str,
    },
    /// More than a token can carry.
    #[error("{claims} claims in {bytes} bytes; at most {CLAIMS_MAX} in {CLAIMS_BYTES_MAX} are possible")]
    TooMuch {
        /// How many.
        claims: usize,
        /// As JSON.
        bytes: usize,
    },
    /// No media type can be called that.
    #[error("typ is {typ:?}; it has 1 to {TYP_BYTES_MAX} visible characters")]
    Typ {
        /// As written.
        typ: String,
    },
    /// A token that is expired when it is made.
    #[error("a lifetime of 0 seconds")]
    Lifetime,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_fills_in_what_a_token_is_about() {
        let template = Template::parse(
            r#"{"lifetime": 600, "claims": {"site": "{realm}/{device}", "roles": ["r", "{sub}"], "level": 3}}"#,
        )
        .unwrap();
        assert_eq!((template.typ.as_str(), template.lifetime), ("at+jwt", Some(Duration::from_mins(10))));
        let asked = Map::from_iter([("level".to_owned(), json!(4))]);
        let filled = template.fill(&[("realm", "fleet"), ("device", "pump-1"), ("sub", "s")], asked);
        assert_eq!(Value::Object(filled), json!({"site": "fleet/pump-1", "roles": ["r", "s"], "level": 4}));
    }

    #[test]
    fn what_only_the_issuer_sets_stands_in_no_template() {
        for name in RESERVED {
            let text = json!({ "claims": { name: "x" } }).to_string();
            assert!(matches!(Template::parse(&text), Err(TemplateError::Reserved { .. })), "{name}");
        }
        let large = json!({ "claims": { "x": "x".repeat(CLAIMS_BYTES_MAX) } }).to_string();
        assert!(matches!(Template::parse(&large), Err(TemplateError::TooMuch { .. })));
        for text in ["[]", "{\"x\":1}", "{\"typ\":\"\"}", "{\"typ\":\"a b\"}", "{\"lifetime\":0}", "{\"lifetime\":-1}"]
        {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
