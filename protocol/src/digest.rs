//! Canonical bytes (RFC 8785) and SHA-256 over them: what permits, plans and definitions are compared by.

mod jcs;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

pub use self::jcs::{INTEGER_MAX, canonical, is_within};

/// A SHA-256 digest, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    #[error("a digest is written sha256: and 64 hexadecimal digits")]
    Malformed,
    /// RFC 8785 goes through IEEE doubles: beyond 2^53 two different integers have one canonical form.
    #[error("the number {0} has no exact canonical form: send it as a string")]
    InexactNumber(String),
    #[error("it is nested too deep")]
    TooDeep,
    #[error("not canonical JSON: {0}")]
    Canonical(String),
}

impl Digest {
    /// The digest of these very bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of one record that follows another (the hash chain of a run).
    #[must_use]
    pub fn chained(previous: Self, bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(previous.0);
        hasher.update(bytes);
        Self(hasher.finalize().into())
    }

    /// What the first record of a chain follows.
    #[must_use]
    pub const fn zero() -> Self {
        Self([0; 32])
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The first `digits` hexadecimal digits, for names that must stay short. At most 64.
    #[must_use]
    pub fn short(&self, digits: usize) -> String {
        self.hex().chars().take(digits).collect()
    }

    fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = DigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes.try_into().map(Self).map_err(|_| DigestError::Malformed)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").ok_or(DigestError::Malformed)?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(DigestError::Malformed);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| DigestError::Malformed)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| DigestError::Malformed)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The digest of the canonical bytes of `value`.
pub fn digest_of(value: &impl Serialize) -> Result<Digest, DigestError> {
    canonical(value).map(|bytes| Digest::of(&bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

    #[test]
    fn arbitrary_precision_is_off_in_this_build() {
        // With serde_json/arbitrary_precision a number is a map inside serde: CEL and digests would break.
        let number: Value = serde_json::from_str("1e2").unwrap();
        assert_eq!(number.as_f64(), Some(100.0));
        assert_eq!(number.to_string(), "100.0");
    }

    #[test]
    fn a_double_comes_back_from_its_text_as_it_was_in_this_build() {
        // Without serde_json/float_roundtrip the last bit of these is another one.
        for double in [51.248_170_271_404_95_f64, 9.308_571_836_302_573e-39, 1.797_693_134_862_315_7e308, 5e-324] {
            let text = serde_json::to_string(&double).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&text).unwrap().to_bits(), double.to_bits(), "{text}");
        }
    }

    #[test]
    fn a_digest_survives_its_text_form_and_refuses_others() {
        let digest = Digest::of(b"belay");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("sha256:AB".parse::<Digest>(), Err(DigestError::Malformed));
        assert_eq!(digest.to_string().to_uppercase().parse::<Digest>(), Err(DigestError::Malformed));
    }
}
