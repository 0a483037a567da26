//! Canonical bytes (RFC 8785) and SHA-256 over them: what permits, plans and definitions are compared by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

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
    #[error("not canonical JSON: {0}")]
    Canonical(String),
}

const INTEGER_MAX: u64 = 1 << 53;

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

/// The canonical bytes of `value` by RFC 8785. Refuses integers that have no exact double.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, DigestError> {
    let value = serde_json::to_value(value).map_err(|e| DigestError::Canonical(e.to_string()))?;
    refuse_inexact(&value)?;
    serde_json_canonicalizer::to_vec(&value).map_err(|e| DigestError::Canonical(e.to_string()))
}

/// The digest of the canonical bytes of `value`.
pub fn digest_of(value: &impl Serialize) -> Result<Digest, DigestError> {
    canonical(value).map(|bytes| Digest::of(&bytes))
}

fn refuse_inexact(value: &Value) -> Result<(), DigestError> {
    match value {
        Value::Number(n) => {
            let magnitude = n.as_u64().or_else(|| n.as_i64().map(i64::unsigned_abs));
            match magnitude {
                Some(m) if m > INTEGER_MAX => Err(DigestError::InexactNumber(n.to_string())),
                Some(_) | None => Ok(()),
            }
        }
        Value::Array(items) => items.iter().try_for_each(refuse_inexact),
        Value::Object(fields) => fields.values().try_for_each(refuse_inexact),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn key_order_and_number_spelling_do_not_change_the_canonical_bytes() {
        let one: Value = serde_json::from_str(r#"{"b":1.0,"a":[1e0,-0.0]}"#).unwrap();
        assert_eq!(canonical(&one).unwrap(), br#"{"a":[1,0],"b":1}"#);
    }

    #[test]
    fn the_sample_of_rfc_8785_section_3_2_2_comes_out_as_published() {
        let sample: Value = serde_json::from_str(
            r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(canonical(&sample).unwrap()).unwrap(),
            r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
    }

    #[test]
    fn integers_beyond_two_to_the_53_are_refused() {
        let error = canonical(&json!({"id": 9_007_199_254_740_993_u64})).unwrap_err();
        assert_eq!(error, DigestError::InexactNumber("9007199254740993".into()));
        assert!(canonical(&json!(9_007_199_254_740_992_u64)).is_ok());
    }

    #[test]
    fn arbitrary_precision_is_off_in_this_build() {
        // With serde_json/arbitrary_precision a number is a map inside serde: CEL and digests would break.
        let number: Value = serde_json::from_str("1e2").unwrap();
        assert_eq!(number.as_f64(), Some(100.0));
        assert_eq!(number.to_string(), "100.0");
    }

    #[test]
    fn a_digest_survives_its_text_form_and_refuses_others() {
        let digest = Digest::of(b"belay");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("sha256:AB".parse::<Digest>(), Err(DigestError::Malformed));
        assert_eq!(digest.to_string().to_uppercase().parse::<Digest>(), Err(DigestError::Malformed));
    }
}
