//! Public keys in PEM files.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use spki::SubjectPublicKeyInfoOwned;
use spki::der::DecodePem;

const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519_OID: &str = "1.3.101.112";

/// A key that verifies signatures over SHA-256, as cosign makes them.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("PublicKey").finish_non_exhaustive()
    }
}

impl PublicKey {
    /// Parses a PEM block `PUBLIC KEY`: ECDSA with P-256 or P-384, RSA of 2048 bits or more, or
    /// Ed25519.
    ///
    /// # Errors
    /// Returns the problem if it is none, or of another algorithm.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoOwned::from_pem(pem)
            .map_err(|error| format!("not a public key in PEM format: {error}"))?;
        let curve = || {
            let parameters = info.algorithm.parameters.as_ref();
            let oid = parameters.and_then(|any| any.decode_as::<spki::ObjectIdentifier>().ok());
            oid.map(|oid| oid.to_string()).unwrap_or_default()
        };
        let oid = info.algorithm.oid.to_string();
        let algorithm: &'static dyn VerificationAlgorithm = match oid.as_str() {
            EC => match curve().as_str() {
                P256 => &ECDSA_P256_SHA256_ASN1,
                P384 => &ECDSA_P384_SHA256_ASN1,
                other => return Err(format!("keys of curve {other} are not supported")),
            },
            RSA => &RSA_PKCS1_2048_8192_SHA256,
            ED25519_OID => &ED25519,
            other => return Err(format!("keys of algorithm {other} are not supported")),
        };
        let bytes = info
            .subject_public_key
            .as_bytes()
            .ok_or("not a public key: its length is not a number of bytes")?;
        Ok(Self {
            algorithm,
            bytes: bytes.to_vec(),
        })
    }

    /// Returns whether the owner of this key has signed the message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes)
            .verify(message, signature)
            .is_ok()
    }
}
