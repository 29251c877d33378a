//! The issuer's public keys as they come over the link: verified like everything else, and kept.

use revocast_core::update::IssuerKeys;
use revocast_core::{Digest, Kind, Now, Rank, RealmId, Refusal, Replica, Sealed, UnixMillis, wire};

use crate::validator::{KeySet, LiveKeys};

/// Takes in key sets and puts the newest in force.
#[derive(Debug)]
pub(crate) struct Feed {
    live: LiveKeys,
    /// When the set in force was sealed, and the digest of what was said.
    held: Option<(UnixMillis, Digest)>,
    /// How many sets were put in force.
    generation: u64,
}

impl Feed {
    /// Goes on from what was kept: the sealed object. Its signature was checked when it arrived, and the key that made it
    /// may have rotated out since.
    pub(crate) fn new(live: LiveKeys, realm: &RealmId, kept: Option<&[u8]>) -> Self {
        let mut feed = Self { live, held: None, generation: 0 };
        let restored = kept.map(|bytes| {
            let sealed = Sealed::expect(bytes, realm, Kind::IssuerKeys)?;
            feed.put(sealed.unverified_body(), &wire::decode_issuer_keys(sealed.unverified_body())?)
        });
        if let Some(Err(refusal)) = restored {
            tracing::warn!(%realm, %refusal, "the issuer keys that were kept cannot be used; waiting for newer ones");
        }
        feed
    }

    /// Where the keys are in force.
    pub(crate) const fn live(&self) -> &LiveKeys {
        &self.live
    }

    /// How many sets were put in force.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes in what arrived; says whether it is new and must be kept.
    pub(crate) fn take(&mut self, now: Now, replica: &Replica, bytes: &[u8]) -> Result<bool, Refusal> {
        let body = replica.verify(now, bytes, Kind::IssuerKeys)?;
        let digest = Digest::of(body.get());
        let raw = *body.get();
        let keys = body.try_map(wire::decode_issuer_keys)?.into_inner();
        if let Some((held, known)) = self.held {
            let rank = |issued_at| Rank { issued_at, ..Rank::default() };
            if keys.issued_at < held {
                let (held, offered) = (rank(held), rank(keys.issued_at));
                return Err(Refusal::Rollback { what: "issuer keys", held, offered });
            }
            if keys.issued_at == held {
                let same = known == digest;
                return if same { Ok(false) } else { Err(Refusal::Equivocation { what: "issuer keys" }) };
            }
        }
        self.put(raw, &keys)?;
        Ok(true)
    }

    fn put(&mut self, body: &[u8], keys: &IssuerKeys) -> Result<(), Refusal> {
        // What cannot be read takes the place of nothing.
        let set = KeySet::from_jwks(&keys.jwks).map_err(|error| {
            tracing::error!(%error, "a signed set of issuer keys cannot be used; the one before stays in force");
            Refusal::Malformed { what: "a set of issuer keys that cannot be used" }
        })?;
        self.live.replace(set);
        self.held = Some((keys.issued_at, Digest::of(body)));
        self.generation += 1;
        Ok(())
    }
}
