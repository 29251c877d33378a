//! What only one device can read: bytes enclosed for its key (HPKE, RFC 9180).
//!
//! Base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305, one message for each
//! encapsulated key. Who enclosed is not proven here; that is what the seal around it is for.
//!
//! ```text
//! info        "revocast/1/delivery" 00, realm id, 00, device id
//! aad         see `Delivery::bound`
//!
//! offset      size  enclosed
//! 0           32    enc, the encapsulated key
//! 32          n     the plain bytes, encrypted
//! 32+n        16    tag
//! ```

use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal_with_rng};
use rand_core::{TryCryptoRng, TryRng};
use thiserror::Error;

use crate::limits::{DELIVERY_CONTENT_BYTES_MAX, ENCLOSURE_BYTES};
use crate::token::RealmId;
use crate::update::DeviceId;

/// What keeps an enclosure for a delivery apart from every other use of a device's key.
const DOMAIN: &[u8] = b"revocast/1/delivery\0";

/// Bytes of an encapsulated key.
const ENCAPSULATED_BYTES: usize = 32;

type SecretHalf = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicHalf = <X25519HkdfSha256 as Kem>::PublicKey;

/// Why bytes could not be enclosed, or not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// The public key is none: of small order, or not in its shortest form.
    ///
    /// Caused by somebody who wants everybody to be able to read, or by damage.
    #[error("this is no X25519 public key that anything may be enclosed for")]
    Key,
    /// More than a delivery carries, or less than an enclosure takes.
    #[error("{bytes} bytes are not between {least} and {most}")]
    Length {
        /// How many there are.
        bytes: usize,
        /// The fewest.
        least: usize,
        /// The most.
        most: usize,
    },
    /// It was enclosed for another key, realm, device or delivery, or changed since.
    #[error("nothing here was enclosed for this device and this delivery")]
    Sealed,
}

/// The secret that opens what was enclosed for a device. Never printed; overwritten when it is dropped.
#[derive(Clone)]
pub struct EnvelopeKey {
    secret: SecretHalf,
    public: EnvelopePublicKey,
}

impl EnvelopeKey {
    /// Derives the key pair from 32 random bytes (RFC 9180 section 7.1.3).
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let (secret, public) = X25519HkdfSha256::derive_keypair(&seed);
        Self { secret, public: EnvelopePublicKey(public.to_bytes().into()) }
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> EnvelopePublicKey {
        self.public
    }
}

impl fmt::Debug for EnvelopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvelopeKey(..)")
    }
}

/// The X25519 public key of a device, for which tokens are enclosed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvelopePublicKey([u8; 32]);

impl EnvelopePublicKey {
    /// Accepts a key in its one shortest form (below 2^255 - 19) that is of no small order: with such a one everybody
    /// could read.
    ///
    /// # Complexity
    ///
    /// One multiplication on the curve, some fifty microseconds.
    pub fn parse(bytes: [u8; 32]) -> Result<Self, EnvelopeError> {
        let [low, middle @ .., high] = bytes;
        let beyond = high > 0x7f || (high == 0x7f && middle == [0xff; 30] && low >= 0xed);
        let key = Self(bytes);
        // To encapsulate fails exactly if what both sides would share is known to all.
        let shared = key.half().and_then(|half| {
            X25519HkdfSha256::encap_with_rng(&half, None, &mut Given::new([1; 32])).map_err(|_| EnvelopeError::Key)
        });
        match shared {
            Ok(_) if !beyond => Ok(key),
            Ok(_) | Err(_) => Err(EnvelopeError::Key),
        }
    }

    /// A key that was accepted before, from where it was kept under a checksum. Nothing is enclosed to one of small order
    /// all the same.
    #[must_use]
    pub const fn kept(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn half(&self) -> Result<PublicHalf, EnvelopeError> {
        PublicHalf::from_bytes(&self.0).map_err(|_| EnvelopeError::Key)
    }
}

impl fmt::Debug for EnvelopePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvelopePublicKey(")?;
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Encloses `plain` for one device, so that only the holder of its key can read it.
///
/// `bound` is what the enclosure shall fit alone ([`Delivery::bound`](crate::Delivery::bound)). `randomness` comes from
/// the operating system and is never used twice.
pub fn enclose(
    to: &EnvelopePublicKey,
    realm: &RealmId,
    device: &DeviceId,
    bound: &[u8],
    plain: &[u8],
    randomness: [u8; 32],
) -> Result<Vec<u8>, EnvelopeError> {
    let most = DELIVERY_CONTENT_BYTES_MAX - ENCLOSURE_BYTES;
    if plain.len() > most {
        return Err(EnvelopeError::Length { bytes: plain.len(), least: 0, most });
    }
    let mut random = Given::new(randomness);
    let info = info(realm, device);
    let (key, encrypted) = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &to.half()?,
        &info,
        plain,
        bound,
        &mut random,
    )
    .map_err(|_| EnvelopeError::Key)?;
    // Whatever asked for more than it was given did not get random bytes.
    if random.overdrawn {
        return Err(EnvelopeError::Key);
    }
    let mut enclosed = Vec::with_capacity(ENCAPSULATED_BYTES + encrypted.len());
    enclosed.extend_from_slice(&key.to_bytes());
    enclosed.extend_from_slice(&encrypted);
    Ok(enclosed)
}

/// Reads what was enclosed for this device, realm and delivery.
pub fn disclose(
    key: &EnvelopeKey,
    realm: &RealmId,
    device: &DeviceId,
    bound: &[u8],
    enclosed: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let (least, most) = (ENCLOSURE_BYTES, DELIVERY_CONTENT_BYTES_MAX);
    let length = EnvelopeError::Length { bytes: enclosed.len(), least, most };
    if enclosed.len() < least || enclosed.len() > most {
        return Err(length);
    }
    let (encapsulated, encrypted) = enclosed.split_at_checked(ENCAPSULATED_BYTES).ok_or(length)?;
    let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| length)?;
    single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key.secret,
        &encapsulated,
        &info(realm, device),
        encrypted,
        bound,
    )
    .map_err(|_| EnvelopeError::Sealed)
}

fn info(realm: &RealmId, device: &DeviceId) -> Vec<u8> {
    let mut info = Vec::with_capacity(DOMAIN.len() + realm.len() + 1 + device.as_bytes().len());
    info.extend_from_slice(DOMAIN);
    info.extend_from_slice(realm.as_bytes());
    info.push(0);
    info.extend_from_slice(device.as_bytes());
    info
}

/// Hands out 32 random bytes that somebody else has drawn, once: core has no randomness.
struct Given {
    bytes: Option<[u8; 32]>,
    overdrawn: bool,
}

impl Given {
    const fn new(bytes: [u8; 32]) -> Self {
        Self { bytes: Some(bytes), overdrawn: false }
    }
}

impl TryRng for Given {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.overdrawn = true;
        Ok(0)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.overdrawn = true;
        Ok(0)
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        match (self.bytes.take(), <&mut [u8; 32]>::try_from(target)) {
            (Some(bytes), Ok(target)) => *target = bytes,
            (_, _) => self.overdrawn = true,
        }
        Ok(())
    }
}

impl TryCryptoRng for Given {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // a test that cannot go on should stop

    use super::*;

    fn unhex<const N: usize>(text: &str) -> [u8; N] {
        core::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }

    fn place() -> (RealmId, DeviceId) {
        (RealmId::new("fleet").unwrap(), DeviceId::new("pump-1").unwrap())
    }

    /// RFC 9180 appendix A.2.1: the suite, the derivation of keys from seeds and the use of given randomness. Its info
    /// is not ours, so the library is called as `enclose` calls it.
    #[test]
    fn the_suite_is_that_of_rfc_9180() {
        let key = EnvelopeKey::from_seed(unhex("1ac01f181fdf9f352797655161c58b75c656a6cc2716dcb66372da835542e1df"));
        let public: [u8; 32] = unhex("4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a");
        assert_eq!(key.public().as_bytes(), &public);
        let secret: [u8; 32] = unhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        // A scalar is told with its three lowest bits clear and its highest ones set, and that changes nothing.
        let told: SecretHalf = SecretHalf::from_bytes(&secret).unwrap();
        assert!(told == key.secret);
        let mut random = Given::new(unhex("909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b"));
        let info: [u8; 20] = unhex("4f6465206f6e2061204772656369616e2055726e");
        let plain: [u8; 29] = unhex("4265617574792069732074727574682c20747275746820626561757479");
        let (enc, encrypted) = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &EnvelopePublicKey::parse(public).unwrap().half().unwrap(),
            &info,
            &plain,
            b"Count-0",
            &mut random,
        )
        .unwrap();
        let enc: [u8; 32] = enc.to_bytes().into();
        assert_eq!(enc, unhex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"));
        let expected: [u8; 45] =
            unhex("1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28");
        assert_eq!(encrypted, expected);
        assert!(!random.overdrawn && random.bytes.is_none());
    }

    #[test]
    fn only_the_device_it_was_enclosed_for_can_read_it() {
        let (realm, device) = place();
        let key = EnvelopeKey::from_seed([7; 32]);
        let enclosed = enclose(&key.public(), &realm, &device, b"bound", b"a token", [9; 32]).unwrap();
        assert_eq!(enclosed.len(), b"a token".len() + ENCLOSURE_BYTES);
        assert_eq!(disclose(&key, &realm, &device, b"bound", &enclosed).unwrap(), b"a token");
        let stranger = EnvelopeKey::from_seed([8; 32]);
        assert_eq!(disclose(&stranger, &realm, &device, b"bound", &enclosed), Err(EnvelopeError::Sealed));
        let (other_realm, other_device) = (RealmId::new("flee").unwrap(), DeviceId::new("tpump-1").unwrap());
        assert_eq!(disclose(&key, &other_realm, &device, b"bound", &enclosed), Err(EnvelopeError::Sealed));
        assert_eq!(disclose(&key, &realm, &other_device, b"bound", &enclosed), Err(EnvelopeError::Sealed));
        assert_eq!(disclose(&key, &realm, &device, b"other", &enclosed), Err(EnvelopeError::Sealed));
        assert_ne!(enclose(&key.public(), &realm, &device, b"bound", b"a token", [10; 32]).unwrap(), enclosed);
    }

    #[test]
    fn any_flipped_bit_is_refused_and_so_is_any_other_length() {
        let (realm, device) = place();
        let key = EnvelopeKey::from_seed([7; 32]);
        let enclosed = enclose(&key.public(), &realm, &device, b"", b"abc", [9; 32]).unwrap();
        for bit in 0..enclosed.len() * 8 {
            let mut bytes = enclosed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = disclose(&key, &realm, &device, b"", &bytes);
            // X25519 ignores the highest bit of a key, but the key schedule does not.
            assert_eq!(read, Err(EnvelopeError::Sealed), "bit {bit}");
        }
        for length in 0..enclosed.len() {
            assert!(disclose(&key, &realm, &device, b"", &enclosed[..length]).is_err());
        }
        let long = alloc::vec![0; DELIVERY_CONTENT_BYTES_MAX + 1];
        let refused = disclose(&key, &realm, &device, b"", &long);
        assert!(matches!(refused, Err(EnvelopeError::Length { bytes, .. }) if bytes == long.len()));
        assert!(enclose(&key.public(), &realm, &device, b"", &long[..long.len() - ENCLOSURE_BYTES], [0; 32]).is_err());
    }

    #[test]
    fn keys_with_which_everybody_could_read_are_refused() {
        // The u-coordinates of small order (RFC 7748 section 6.1), and forms that mean them or a good key once more.
        let mut weak = alloc::vec![
            [0; 32],
            core::array::from_fn(|at| u8::from(at == 0)),
            unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            unhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            unhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            unhex("f6ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        ];
        let mut high = *EnvelopeKey::from_seed([7; 32]).public().as_bytes();
        high[31] |= 0x80;
        weak.push(high);
        for bytes in weak {
            assert_eq!(EnvelopePublicKey::parse(bytes), Err(EnvelopeError::Key), "{bytes:02x?}");
        }
        let good = EnvelopeKey::from_seed([7; 32]).public();
        assert_eq!(EnvelopePublicKey::parse(*good.as_bytes()), Ok(good));
    }

    #[test]
    fn no_key_is_ever_printed() {
        let key = EnvelopeKey::from_seed([7; 32]);
        assert_eq!(alloc::format!("{key:?}"), "EnvelopeKey(..)");
    }
}
