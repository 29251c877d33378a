//! What a device says and proves when it is enrolled: its keys.

use alloc::vec::Vec;

use crate::envelope::EnvelopePublicKey;
use crate::seal::{PublicKey, SigningKey};
use crate::token::RealmId;
use crate::update::DeviceId;

/// What a proof is signed behind; no sealed object begins like it.
const DOMAIN: &[u8] = b"revocast/1/enroll\0";

/// The public keys of a device in a realm, as it asks to be known by.
///
/// Its proof shows that whoever asks holds the signing key, and binds the other key, the name and the realm to it. It
/// does not show that the name is due to it: that is for the operator who hands it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKeys {
    /// Where it wants to be enrolled.
    pub realm: RealmId,
    /// Its name.
    pub device: DeviceId,
    /// Checks what it signs: requests, reports, questions, proofs of possession.
    pub signing: PublicKey,
    /// Encloses what only it shall read.
    pub sealing: EnvelopePublicKey,
}

impl DeviceKeys {
    /// Signs them with the secret half of their signing key.
    ///
    /// ```text
    /// offset  size  signed by Ed25519
    /// 0       18    "revocast/1/enroll" 00
    /// 18      R     realm id
    /// 18+R    1     00
    /// 19+R    d     device id
    ///         1     00
    ///         32    signing key
    ///         32    sealing key
    /// ```
    #[must_use]
    pub fn prove(&self, key: &SigningKey) -> [u8; 64] {
        key.sign(&self.signed_bytes())
    }

    /// Whether the holder of the signing key made this proof for exactly these keys, device and realm.
    #[must_use]
    pub fn are_proven_by(&self, proof: &[u8; 64]) -> bool {
        self.signing.has_signed(&self.signed_bytes(), proof)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DOMAIN.len() + 2 * (64 + 1) + 2 * 32);
        bytes.extend_from_slice(DOMAIN);
        bytes.extend_from_slice(self.realm.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.device.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&self.signing.0);
        bytes.extend_from_slice(self.sealing.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on should stop

    use super::*;
    use crate::envelope::EnvelopeKey;

    #[test]
    fn a_proof_fits_its_keys_device_and_realm_alone() {
        let signer = SigningKey::from_seed([1; 32]);
        let keys = DeviceKeys {
            realm: RealmId::new("fleet").unwrap(),
            device: DeviceId::new("pump-1").unwrap(),
            signing: signer.public(),
            sealing: EnvelopeKey::from_seed([2; 32]).public(),
        };
        let proof = keys.prove(&signer);
        assert!(keys.are_proven_by(&proof));
        let others = [
            DeviceKeys { realm: RealmId::new("fleets").unwrap(), ..keys },
            DeviceKeys { device: DeviceId::new("pump-2").unwrap(), ..keys },
            DeviceKeys { signing: SigningKey::from_seed([3; 32]).public(), ..keys },
            DeviceKeys { sealing: EnvelopeKey::from_seed([4; 32]).public(), ..keys },
        ];
        assert!(others.iter().all(|keys| !keys.are_proven_by(&proof)));
        assert!(!keys.are_proven_by(&keys.prove(&SigningKey::from_seed([3; 32]))));
        assert!(!keys.are_proven_by(&[0; 64]));
    }
}
