//! The keys that tokens are validated with: a JWK Set (RFC 7517), read strictly.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwapOption, Guard};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use thiserror::Error;

use super::crypto::Strict;
use super::form::Header;
use crate::json::{Json, JsonError, Members};

/// Bytes of a JWK Set: sixty-four RSA keys with certificates.
pub(crate) const SET_BYTES_MAX: usize = 512 * 1024;

/// Keys in one set. An issuer has two or three.
const KEYS_MAX: usize = 64;

/// Bits of an RSA modulus: below it is too weak, above it too slow to be asked of a device.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Keys that signatures are verified with, each pinned to one algorithm.
#[derive(Clone, Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    ignored: usize,
}

/// One key and the one algorithm it is used with.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) kid: Option<Arc<str>>,
    pub(super) algorithm: Algorithm,
    pub(super) verifier: Arc<Strict>,
    /// A header that went with a good signature of this key. An issuer writes the same one into every token, so most
    /// headers need not be decoded and read again.
    known: Arc<OnceLock<Known>>,
}

/// A header and what it says.
struct Known {
    text: Box<str>,
    header: Header<'static>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {:?})", self.algorithm.name(), self.kid)
    }
}

impl Key {
    /// Remembers a header that went with a good signature; the first one only.
    pub(super) fn remember(&self, text: &str, header: &Header<'_>) {
        if self.known.get().is_none() {
            // Whoever was faster has the same right.
            let _ = self.known.set(Known { text: text.into(), header: header.to_owned() });
        }
    }
}

/// A signature algorithm of RFC 7518 section 3.1 or RFC 8037. `none` is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    pub(super) const ALL: [Self; 12] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The exact name; others, and the same in other cases, are no algorithm.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    pub(super) const fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Hs384 => jsonwebtoken::Algorithm::HS384,
            Self::Hs512 => jsonwebtoken::Algorithm::HS512,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Rs384 => jsonwebtoken::Algorithm::RS384,
            Self::Rs512 => jsonwebtoken::Algorithm::RS512,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Ps384 => jsonwebtoken::Algorithm::PS384,
            Self::Ps512 => jsonwebtoken::Algorithm::PS512,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    const fn is_rsa(self) -> bool {
        matches!(self, Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512)
    }

    /// Bytes that a shared secret must have at least (RFC 7518 section 3.2); `None` for public keys.
    const fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Self::Hs256 => Some(32),
            Self::Hs384 => Some(48),
            Self::Hs512 => Some(64),
            Self::Rs256
            | Self::Rs384
            | Self::Rs512
            | Self::Ps256
            | Self::Ps384
            | Self::Ps512
            | Self::Es256
            | Self::Es384
            | Self::EdDsa => None,
        }
    }
}

impl KeySet {
    /// Reads a JWK Set.
    ///
    /// Keys of other kinds, curves and algorithms than those known here, for encryption, or not for
    /// verifying are ignored and counted, as RFC 7517 section 5 asks. Everything else that is not
    /// right refuses the whole set. The algorithm of a key is its `alg`; without one it is ES256 or
    /// ES384 by the curve, `EdDSA`, RS256 for RSA, HS256 for a shared secret.
    pub fn from_jwks(bytes: &[u8]) -> Result<Self, KeySetError> {
        if bytes.len() > SET_BYTES_MAX {
            return Err(KeySetError::TooLarge { bytes: bytes.len() });
        }
        let mut set = match Json::parse(bytes) {
            Ok(json) => json.into_object().ok_or(KeySetError::Shape)?,
            Err(JsonError::Duplicate { name }) => return Err(KeySetError::Duplicate { name }),
            Err(JsonError::Syntax | JsonError::TooDeep) => return Err(KeySetError::Syntax),
        };
        let Some(Json::Array(items)) = set.remove("keys") else {
            return Err(KeySetError::Shape);
        };
        if items.len() > KEYS_MAX {
            return Err(KeySetError::TooMany { count: items.len() });
        }
        let mut keys = Vec::with_capacity(items.len());
        let mut ignored = 0;
        let mut kids = BTreeSet::new();
        for (number, item) in items.into_iter().enumerate() {
            let bad = |source| KeySetError::Key { number, source };
            let members = item.into_object().ok_or(bad(KeyError::Shape))?;
            let Some(key) = read_key(&members).map_err(bad)? else {
                ignored += 1;
                continue;
            };
            if let Some(kid) = &key.kid
                && !kids.insert(kid.clone())
            {
                return Err(bad(KeyError::Twice { kid: kid.as_ref().to_owned() }));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(KeySetError::NoKey { ignored });
        }
        Ok(Self { keys, ignored })
    }

    /// How many keys it holds.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a set without keys is refused")]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many keys of the set are of no use here.
    #[must_use]
    pub const fn ignored(&self) -> usize {
        self.ignored
    }

    /// The key whose known header this is, and what that header says. The same text means the same key: the set does not change.
    pub(super) fn known(&self, text: &str) -> Option<(&Key, &Header<'static>)> {
        self.keys.iter().find_map(|key| {
            let known = key.known.get().filter(|known| *known.text == *text)?;
            Some((key, &known.header))
        })
    }

    /// The one key that a header means, if there is exactly one.
    ///
    /// A `kid` that the set knows decides alone. Otherwise keys without `kid` are considered (or all,
    /// if the header has none either) and the algorithm must leave exactly one.
    pub(super) fn choose(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, NoKey> {
        if let Some(kid) = kid
            && let Some(key) = self.keys.iter().find(|key| key.kid.as_deref() == Some(kid))
        {
            return if key.algorithm == algorithm { Ok(key) } else { Err(NoKey::OtherAlgorithm) };
        }
        let considered = || self.keys.iter().filter(|key| kid.is_none() || key.kid.is_none());
        let mut fitting = considered().filter(|key| key.algorithm == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (None, _) if considered().count() == 1 => Err(NoKey::OtherAlgorithm),
            (Some(_), Some(_)) | (None, _) => Err(NoKey::NotFound),
        }
    }
}

/// A key set that may change while validators use it: an issuer replaces its keys, and whoever hears of it
/// (a file, a topic, an address) replaces the set here. Cheap to clone; all clones share one set.
///
/// Every token is validated with one whole set: that from before a change, or that from after it. As long
/// as none has arrived, no key fits any token.
#[derive(Clone, Debug, Default)]
pub struct LiveKeys(Arc<ArcSwapOption<KeySet>>);

impl LiveKeys {
    /// Begins with this set; `LiveKeys::default()` begins with none.
    #[must_use]
    pub fn new(keys: KeySet) -> Self {
        Self(Arc::new(ArcSwapOption::from_pointee(keys)))
    }

    /// Puts another set in its place, at once and for all that share it.
    ///
    /// A key that is not in the new set vouches for nothing from here on. So never replace a set by one that
    /// could not be read: keep the old one, and say so.
    pub fn replace(&self, keys: KeySet) {
        self.0.store(Some(Arc::new(keys)));
    }

    /// The set as it stands now; `None` before the first.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.0.load_full()
    }

    /// The same for one token: cheaper, and to be let go soon.
    pub(super) fn load(&self) -> Guard<Option<Arc<KeySet>>> {
        self.0.load()
    }
}

impl From<KeySet> for LiveKeys {
    fn from(keys: KeySet) -> Self {
        Self::new(keys)
    }
}

/// Why no key was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// None, or more than one that it could be.
    NotFound,
    /// The key that is meant belongs to another algorithm.
    OtherAlgorithm,
}

/// Reads one key; `None` if it is a good one but not for us.
fn read_key(members: &Members<'_>) -> Result<Option<Key>, KeyError> {
    let text = |name: &'static str| match members.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(KeyError::Member { name }),
    };
    let bytes = |name: &'static str| {
        let text = text(name)?.ok_or(KeyError::Member { name })?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Member { name })
    };
    let kty = text("kty")?.ok_or(KeyError::Member { name: "kty" })?;
    let kid = text("kid")?.map(Arc::from);
    if kty != "oct" && ["d", "p", "q", "dp", "dq", "qi", "oth"].iter().any(|name| members.get(name).is_some()) {
        return Err(KeyError::Private);
    }
    if !is_for_verifying(members, text("use")?)? {
        return Ok(None);
    }
    let named = match text("alg")? {
        None => None,
        Some(name) => match Algorithm::from_name(name) {
            Some(algorithm) => Some(algorithm),
            None => return Ok(None),
        },
    };
    // The algorithm named by the key must be one of its kind.
    let pinned = |default: Algorithm, fits: fn(Algorithm) -> bool| match named {
        None => Ok(default),
        Some(algorithm) if fits(algorithm) => Ok(algorithm),
        Some(algorithm) => Err(KeyError::Algorithm { found: algorithm.name() }),
    };
    let (algorithm, decoding) = match (kty, text("crv")?) {
        ("oct", _) => {
            let algorithm = pinned(Algorithm::Hs256, |algorithm| algorithm.secret_bytes_min().is_some())?;
            let secret = bytes("k")?;
            let least = algorithm.secret_bytes_min().unwrap_or_default();
            if secret.len() < least {
                return Err(KeyError::Weak { bits: secret.len() * 8, least: least * 8 });
            }
            (algorithm, DecodingKey::from_secret(&secret))
        }
        ("RSA", _) => {
            let algorithm = pinned(Algorithm::Rs256, Algorithm::is_rsa)?;
            let (n, e) = (bytes("n")?, bytes("e")?);
            check_rsa(&n, &e)?;
            (algorithm, DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", Some("P-256")) => {
            let algorithm = pinned(Algorithm::Es256, |algorithm| algorithm == Algorithm::Es256)?;
            (algorithm, DecodingKey::from_ec_der(&ec_point(&bytes("x")?, &bytes("y")?, 32)?))
        }
        ("EC", Some("P-384")) => {
            let algorithm = pinned(Algorithm::Es384, |algorithm| algorithm == Algorithm::Es384)?;
            (algorithm, DecodingKey::from_ec_der(&ec_point(&bytes("x")?, &bytes("y")?, 48)?))
        }
        ("OKP", Some("Ed25519")) => {
            let algorithm = pinned(Algorithm::EdDsa, |algorithm| algorithm == Algorithm::EdDsa)?;
            (algorithm, DecodingKey::from_ed_der(&bytes("x")?))
        }
        ("EC" | "OKP", None) => return Err(KeyError::Member { name: "crv" }),
        _ => return Ok(None),
    };
    // What was not found out above: an Ed25519 key that is no point, or of small order.
    let verifier = Strict::new(algorithm.library(), &decoding).ok_or(KeyError::Member { name: "x" })?;
    Ok(Some(Key { kid, algorithm, verifier: Arc::new(verifier), known: Arc::default() }))
}

/// Whether `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3) allow verifying.
fn is_for_verifying(members: &Members<'_>, purpose: Option<&str>) -> Result<bool, KeyError> {
    let member = KeyError::Member { name: "key_ops" };
    let operations = match members.get("key_ops") {
        None => true,
        Some(Json::Array(operations)) => {
            let names: Option<Vec<&str>> = operations.iter().map(Json::as_str).collect();
            let names = names.ok_or(member.clone())?;
            if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
                return Err(member);
            }
            names.contains(&"verify")
        }
        Some(_) => return Err(member),
    };
    Ok(operations && purpose.is_none_or(|purpose| purpose == "sig"))
}

fn check_rsa(n: &[u8], e: &[u8]) -> Result<(), KeyError> {
    // The shortest encoding only: a number has one.
    let first = n.first().copied().unwrap_or_default();
    if first == 0 || n.last().is_none_or(|last| last % 2 == 0) {
        return Err(KeyError::Member { name: "n" });
    }
    let bits = n.len() * 8 - first.leading_zeros() as usize;
    if bits < *RSA_BITS.start() {
        return Err(KeyError::Weak { bits, least: *RSA_BITS.start() });
    }
    if bits > *RSA_BITS.end() {
        return Err(KeyError::Member { name: "n" });
    }
    // From 3 to 2^33 - 1, as ring takes them.
    let exponent = e.iter().take(5).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let good = e.len() <= 5 && e.first().is_some_and(|first| *first != 0) && exponent % 2 == 1;
    if good && (3..1 << 33).contains(&exponent) { Ok(()) } else { Err(KeyError::Member { name: "e" }) }
}

/// The uncompressed point (SEC 1 section 2.3.3). Whether it lies on the curve shows on use.
fn ec_point(x: &[u8], y: &[u8], bytes: usize) -> Result<Vec<u8>, KeyError> {
    for (name, coordinate) in [("x", x), ("y", y)] {
        if coordinate.len() != bytes {
            return Err(KeyError::Member { name });
        }
    }
    Ok([&[4], x, y].concat())
}

/// Why a JWK Set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeySetError {
    /// Longer than any set of keys.
    #[error("the key set has {bytes} bytes, more than {SET_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, or nested absurdly.
    #[error("the key set is not JSON")]
    Syntax,
    /// Two members with one name: readers would disagree about which counts.
    #[error("the name {name:?} stands twice in one object of the key set")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Not an object with an array `keys`.
    #[error("the key set is not of the shape {{\"keys\":[…]}}")]
    Shape,
    /// More than any issuer has.
    #[error("the key set holds {count} keys, more than {KEYS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Nothing to verify with.
    #[error("the key set holds no key to verify signatures with ({ignored} are for something else)")]
    NoKey {
        /// Keys of other kinds or for other purposes.
        ignored: usize,
    },
    /// One of its keys is not right.
    #[error("key {number} of the set cannot be used")]
    Key {
        /// Its place in the set, from 0.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
}

/// What is wrong with a JWK.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not an object.
    #[error("it is not an object")]
    Shape,
    /// Missing, of another type, not base64url, or out of range.
    #[error("its {name:?} is missing or not what it should be")]
    Member {
        /// Which member.
        name: &'static str,
    },
    /// A private key has been published. Replace it: it is no secret any more.
    #[error("it holds a private key")]
    Private,
    /// Too short to be safe.
    #[error("it has {bits} bits, fewer than {least}")]
    Weak {
        /// Its size.
        bits: usize,
        /// The least that is accepted.
        least: usize,
    },
    /// `alg` belongs to another kind of key.
    #[error("its kind does not go with the algorithm {found}")]
    Algorithm {
        /// What `alg` says.
        found: &'static str,
    },
    /// Two keys answer to one name.
    #[error("its kid {kid:?} is that of another key")]
    Twice {
        /// The name.
        kid: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b64(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn read(keys: &str) -> Result<KeySet, KeySetError> {
        KeySet::from_jwks(format!(r#"{{"keys":[{keys}]}}"#).as_bytes())
    }

    fn oct(bytes: usize, more: &str) -> String {
        format!(r#"{{"kty":"oct","k":"{}"{more}}}"#, b64(&vec![7; bytes]))
    }

    fn rsa(n: &[u8], e: &[u8]) -> String {
        format!(r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#, b64(n), b64(e))
    }

    fn error(keys: &str) -> KeyError {
        match read(keys) {
            Err(KeySetError::Key { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    const MEMBER: fn(&'static str) -> KeyError = |name| KeyError::Member { name };

    #[test]
    fn each_key_is_pinned_to_one_algorithm() {
        let n = vec![0xff; 256];
        let point = format!(r#""x":"{}","y":"{}""#, b64(&[1; 32]), b64(&[2; 32]));
        let wide = format!(r#""x":"{}","y":"{}""#, b64(&[1; 48]), b64(&[2; 48]));
        // The base point of edwards25519.
        let mut ed = [0x66; 32];
        ed[0] = 0x58;
        let ed = b64(&ed);
        for (text, algorithm) in [
            (oct(32, ""), Algorithm::Hs256),
            (oct(64, r#","alg":"HS512""#), Algorithm::Hs512),
            (rsa(&n, &[1, 0, 1]), Algorithm::Rs256),
            (format!(r#"{{"kty":"RSA","alg":"PS384","n":"{}","e":"AQAB"}}"#, b64(&n)), Algorithm::Ps384),
            (format!(r#"{{"kty":"EC","crv":"P-256",{point}}}"#), Algorithm::Es256),
            (format!(r#"{{"kty":"EC","crv":"P-384",{wide}}}"#), Algorithm::Es384),
            (format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{ed}"}}"#), Algorithm::EdDsa),
        ] {
            let set = read(&text).unwrap();
            assert_eq!((set.len(), set.keys[0].algorithm), (1, algorithm), "{text}");
        }
    }

    #[test]
    fn keys_that_are_too_weak_or_out_of_shape_are_refused() {
        assert_eq!(error(&oct(31, "")), KeyError::Weak { bits: 248, least: 256 });
        assert_eq!(error(&oct(63, r#","alg":"HS512""#)), KeyError::Weak { bits: 504, least: 512 });
        assert_eq!(error(r#"{"kty":"oct","k":""}"#), KeyError::Weak { bits: 0, least: 256 });
        assert_eq!(error(r#"{"kty":"oct"}"#), MEMBER("k"));
        assert_eq!(error(r#"{"kty":"oct","k":"AAAA="}"#), MEMBER("k"));
        assert_eq!(error(r#"{"kty":"oct","k":1}"#), MEMBER("k"));
        assert_eq!(error(r#"{"k":"AAAA"}"#), MEMBER("kty"));
        assert_eq!(error("1"), KeyError::Shape);

        let good = vec![0xff; 256];
        assert_eq!(error(&rsa(&[0xff; 128], &[1, 0, 1])), KeyError::Weak { bits: 1024, least: 2048 });
        let mut short = good.clone();
        short[0] = 0x7f;
        assert_eq!(error(&rsa(&short, &[1, 0, 1])), KeyError::Weak { bits: 2047, least: 2048 });
        assert_eq!(error(&rsa(&[&[0], good.as_slice()].concat(), &[1, 0, 1])), MEMBER("n"));
        assert_eq!(error(&rsa(&[0xff; 1025], &[1, 0, 1])), MEMBER("n"));
        assert_eq!(error(&rsa(&[good.as_slice(), &[0]].concat(), &[1, 0, 1])), MEMBER("n"));
        for e in [&[][..], &[1], &[2], &[0, 3], &[1, 0, 0], &[1; 6], &[2, 0, 0, 0, 1]] {
            assert_eq!(error(&rsa(&good, e)), MEMBER("e"), "{e:?}");
        }

        let ec = |x: usize, y: usize| {
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}"#, b64(&vec![1; x]), b64(&vec![1; y]))
        };
        assert_eq!(error(&ec(31, 32)), MEMBER("x"));
        assert_eq!(error(&ec(32, 33)), MEMBER("y"));
        assert_eq!(error(r#"{"kty":"EC"}"#), MEMBER("crv"));
        // Small order: every message would have a signature.
        let small = |x: [u8; 32]| format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, b64(&x));
        assert_eq!(error(&small([0; 32])), MEMBER("x"));
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(error(&small(identity)), MEMBER("x"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(error(&oct(32, r#","alg":"RS256""#)), KeyError::Algorithm { found: "RS256" });
        let n = b64(&[0xff; 256]);
        let confused = format!(r#"{{"kty":"RSA","alg":"HS256","n":"{n}","e":"AQAB"}}"#);
        assert_eq!(error(&confused), KeyError::Algorithm { found: "HS256" });
        let private = format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","d":"AQAB"}}"#);
        assert_eq!(error(&private), KeyError::Private);
        let twice = format!("{},{}", oct(32, r#","kid":"a""#), oct(33, r#","kid":"a""#));
        assert_eq!(error(&twice), KeyError::Twice { kid: "a".into() });
        assert_eq!(error(&oct(32, r#","key_ops":"verify""#)), MEMBER("key_ops"));
        assert_eq!(error(&oct(32, r#","key_ops":["verify","verify"]"#)), MEMBER("key_ops"));
    }

    #[test]
    fn keys_for_something_else_are_ignored() {
        for more in [r#","use":"enc""#, r#","key_ops":["encrypt"]"#, r#","alg":"A256KW""#, r#","alg":"none""#] {
            assert_eq!(read(&oct(32, more)).unwrap_err(), KeySetError::NoKey { ignored: 1 }, "{more}");
            let set = read(&format!("{},{}", oct(32, more), oct(32, ""))).unwrap();
            assert_eq!((set.len(), set.ignored()), (1, 1));
        }
        let other =
            r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"},{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"AKP"}"#;
        assert_eq!(read(other).unwrap_err(), KeySetError::NoKey { ignored: 3 });
        assert_eq!(read(&oct(32, r#","use":"sig","key_ops":["sign","verify"]"#)).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_key_set_is_refused() {
        let refused = |text: &str| KeySet::from_jwks(text.as_bytes()).unwrap_err();
        assert_eq!(refused("{"), KeySetError::Syntax);
        assert_eq!(refused("[]"), KeySetError::Shape);
        assert_eq!(refused("{}"), KeySetError::Shape);
        assert_eq!(refused(r#"{"keys":{}}"#), KeySetError::Shape);
        assert_eq!(refused(r#"{"keys":[]}"#), KeySetError::NoKey { ignored: 0 });
        assert_eq!(refused(r#"{"keys":[],"keys":[]}"#), KeySetError::Duplicate { name: "keys".into() });
        assert_eq!(refused(&" ".repeat(SET_BYTES_MAX + 1)), KeySetError::TooLarge { bytes: SET_BYTES_MAX + 1 });
        assert_eq!(read(&vec!["1"; 65].join(",")).unwrap_err(), KeySetError::TooMany { count: 65 });
    }

    #[test]
    fn a_header_means_one_key_or_none() {
        let set = read(
            &[oct(32, r#","kid":"a""#), oct(64, r#","kid":"b","alg":"HS512""#), oct(48, r#","alg":"HS384""#)].join(","),
        )
        .unwrap();
        let choose = |kid, algorithm| set.choose(kid, algorithm).map(|key| key.kid.as_deref());
        assert_eq!(choose(Some("a"), Algorithm::Hs256), Ok(Some("a")));
        assert_eq!(choose(Some("a"), Algorithm::Hs512), Err(NoKey::OtherAlgorithm));
        assert_eq!(choose(None, Algorithm::Hs512), Ok(Some("b")));
        assert_eq!(choose(None, Algorithm::EdDsa), Err(NoKey::NotFound));
        // A name that the set does not know can only mean a key without name.
        assert_eq!(choose(Some("c"), Algorithm::Hs384), Ok(None));
        assert_eq!(choose(Some("c"), Algorithm::Hs256), Err(NoKey::OtherAlgorithm));
        let two = read(&[oct(32, r#","kid":"a""#), oct(33, r#","kid":"b""#)].join(",")).unwrap();
        assert_eq!(two.choose(None, Algorithm::Hs256).map(|_| ()), Err(NoKey::NotFound));
        assert_eq!(two.choose(Some("c"), Algorithm::Hs256).map(|_| ()), Err(NoKey::NotFound));
    }
}
