//! The compact form of a signed token (RFC 7515 section 3.1): three parts of base64url, two dots.
//!
//! Nothing is parsed here. A text has one reading, or none: base64url without padding, without other
//! characters, and without bits to spare in the last one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

/// Bytes of a token. Larger ones do not fit the headers they travel in.
pub(crate) const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a header, in base64url. It is read before the signature is checked.
pub(crate) const HEADER_BYTES_MAX: usize = 2 * 1024;

/// The parts of a token, decoded.
pub(crate) struct Compact<'a> {
    /// What the signature covers: header and payload as they came.
    pub(crate) message: &'a [u8],
    /// The header as it came; [`Compact::header`] decodes it.
    pub(crate) header_text: &'a str,
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

/// Why a text has not this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum FormError {
    #[error("{bytes} bytes are too many")]
    TooLarge { bytes: usize },
    #[error("there are not three parts")]
    Parts,
    #[error("the {part} is not base64url")]
    Base64 { part: &'static str },
}

impl<'a> Compact<'a> {
    /// Takes a text apart.
    ///
    /// # Complexity
    ///
    /// One pass over at most 8 KiB; nothing is allocated for a text that is larger.
    pub(crate) fn split(text: &'a str) -> Result<Self, FormError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(FormError::TooLarge { bytes: text.len() });
        }
        let (message, signature) = text.rsplit_once('.').ok_or(FormError::Parts)?;
        let (header, payload) = message.split_once('.').ok_or(FormError::Parts)?;
        if payload.contains('.') {
            return Err(FormError::Parts);
        }
        if header.len() > HEADER_BYTES_MAX {
            return Err(FormError::TooLarge { bytes: header.len() });
        }
        Ok(Self {
            message: message.as_bytes(),
            header_text: header,
            payload: decode("payload", payload)?,
            signature: decode("signature", signature)?,
        })
    }

    /// The header, decoded.
    pub(crate) fn header(&self) -> Result<Vec<u8>, FormError> {
        decode("header", self.header_text)
    }
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, FormError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| FormError::Base64 { part })
}
