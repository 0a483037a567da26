//! Money: an exact decimal string in the API, integer micro-USD inside.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MICRO: u64 = 1_000_000;
/// At most nine digits before and six after the point: exact in micro-USD.
const PATTERN: &str = r"^[0-9]{1,9}(\.[0-9]{1,6})?$";

/// The most that [`PATTERN`] takes.
const MICRO_MAX: u64 = 999_999_999_999_999;

/// US dollars, exact to a millionth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an amount is written as decimal dollars with at most six digits after the point, such as 0.25")]
pub struct UsdError;

impl Usd {
    /// What is more than the API has room for is that much.
    #[must_use]
    pub const fn from_micro(micro_usd: u64) -> Self {
        Self(if micro_usd < MICRO_MAX { micro_usd } else { MICRO_MAX })
    }

    #[must_use]
    pub const fn micro(self) -> u64 {
        self.0
    }
}

impl FromStr for Usd {
    type Err = UsdError;

    fn from_str(text: &str) -> Result<Self, UsdError> {
        let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
        let fraction = fraction.unwrap_or("0");
        let digits =
            |part: &str, max: usize| (1..=max).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole, 9) || !digits(fraction, 6) {
            return Err(UsdError);
        }
        let whole: u64 = whole.parse().map_err(|_| UsdError)?;
        let fraction: u64 = format!("{fraction:0<6}").parse().map_err(|_| UsdError)?;
        Ok(Self(whole * MICRO + fraction))
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:06}", self.0 % MICRO);
        let fraction = fraction.trim_end_matches('0');
        // Cents are always shown: 0.10 reads as money, 0.1 does not.
        write!(f, "{}.{fraction:0<2}", self.0 / MICRO)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Usd {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Usd".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 16})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_both_ways() {
        for (text, micro, shown) in [
            ("3.00", 3_000_000, "3.00"),
            ("0.041", 41_000, "0.041"),
            ("15", 15_000_000, "15.00"),
            ("0.000001", 1, "0.000001"),
        ] {
            assert_eq!(text.parse(), Ok(Usd::from_micro(micro)), "{text}");
            assert_eq!(Usd::from_micro(micro).to_string(), shown);
            let most = Usd::from_micro(u64::MAX);
            assert_eq!(
                most.to_string().parse(),
                Ok(most),
                "what is more than the API takes is told as the most that it takes"
            );
        }
    }

    #[test]
    fn signs_exponents_and_a_seventh_digit_are_refused() {
        for text in ["-1", "1e3", "0.0000001", "", ".5", "1.", "1,5", "1234567890"] {
            assert_eq!(text.parse::<Usd>(), Err(UsdError), "{text}");
        }
    }
}
