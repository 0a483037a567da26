//! Canonical JSON by RFC 8785. Every record of a journal goes through it, so that it writes straight from the value;
//! only numbers with a fraction or an exponent are left to the library that the tests compare the whole with.

use serde::Serialize;
use serde_json::{Number, Value};

use super::DigestError;

/// Deeper values are refused: what is written down has to be read again, and readers of JSON stop at 127 levels.
const DEPTH_MAX: usize = 96;
/// Up to here every integer has a double of its own, written as its decimal digits.
pub const INTEGER_MAX: u64 = 1 << 53;

/// The canonical bytes of `value` by RFC 8785. Refuses integers that have no exact double.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, DigestError> {
    let value = serde_json::to_value(value).map_err(failed)?;
    let mut bytes = Vec::with_capacity(1024);
    write_value(&mut bytes, &value, 0)?;
    Ok(bytes)
}

/// Whether `value` has no more than so many levels.
#[must_use]
pub fn is_within(value: &Value, levels: usize) -> bool {
    let Some(left) = levels.checked_sub(1) else { return !matches!(value, Value::Array(_) | Value::Object(_)) };
    match value {
        Value::Array(items) => items.iter().all(|item| is_within(item, left)),
        Value::Object(fields) => fields.values().all(|value| is_within(value, left)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn write_value(bytes: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), DigestError> {
    if depth > DEPTH_MAX {
        return Err(DigestError::TooDeep);
    }
    match value {
        Value::Null => bytes.extend_from_slice(b"null"),
        Value::Bool(true) => bytes.extend_from_slice(b"true"),
        Value::Bool(false) => bytes.extend_from_slice(b"false"),
        Value::Number(number) => write_number(bytes, number)?,
        Value::String(text) => write_string(bytes, text)?,
        Value::Array(items) => {
            bytes.push(b'[');
            for (at, item) in items.iter().enumerate() {
                separate(bytes, at);
                write_value(bytes, item, depth + 1)?;
            }
            bytes.push(b']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            // Section 3.2.3: by UTF-16 code units, which is another order than that of the bytes.
            fields.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            bytes.push(b'{');
            for (at, (name, value)) in fields.into_iter().enumerate() {
                separate(bytes, at);
                write_string(bytes, name)?;
                bytes.push(b':');
                write_value(bytes, value, depth + 1)?;
            }
            bytes.push(b'}');
        }
    }
    Ok(())
}

fn separate(bytes: &mut Vec<u8>, at: usize) {
    if at > 0 {
        bytes.push(b',');
    }
}

/// `serde_json` escapes as section 3.2.2.2 wants it: the short forms where there are any, no more than must be.
fn write_string(bytes: &mut Vec<u8>, text: &str) -> Result<(), DigestError> {
    serde_json::to_writer(bytes, text).map_err(failed)
}

fn write_number(bytes: &mut Vec<u8>, number: &Number) -> Result<(), DigestError> {
    let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    match magnitude {
        Some(magnitude) if magnitude > INTEGER_MAX => Err(DigestError::InexactNumber(number.to_string())),
        Some(_) => serde_json::to_writer(bytes, number).map_err(failed),
        None => serde_json_canonicalizer::to_writer(number, bytes).map_err(failed),
    }
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn failed(error: serde_json::Error) -> DigestError {
    DigestError::Canonical(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn key_order_and_number_spelling_do_not_change_the_canonical_bytes() {
        let one: Value = serde_json::from_str(r#"{"b":1.0,"a":[1e0,-0.0]}"#).unwrap();
        assert_eq!(canonical(&one).unwrap(), br#"{"a":[1,0],"b":1}"#);
    }

    /// `serde_json` reads 127 levels: a record that is written has to be read again.
    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let bytes = canonical(&nested(DEPTH_MAX)).unwrap();
        assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
        assert_eq!(canonical(&nested(DEPTH_MAX + 1)), Err(DigestError::TooDeep));
        assert!(is_within(&nested(3), 3) && !is_within(&nested(3), 2) && is_within(&json!(1), 0));
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
    fn names_are_ordered_by_their_utf_16_code_units() {
        // In bytes the private use character comes first; its code unit comes after the pair of the emoji.
        let value = json!({"\u{e000}": 1, "\u{1f600}": 2});
        assert_eq!(String::from_utf8(canonical(&value).unwrap()).unwrap(), "{\"\u{1f600}\":2,\"\u{e000}\":1}");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(1_i64 << 53)..=1 << 53).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-1000_i32..1000).prop_map(|n| Value::from(f64::from(n) / 8.0)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_comes_out_as_from_the_library(value in any_json()) {
            prop_assert_eq!(canonical(&value).unwrap(), serde_json_canonicalizer::to_vec(&value).unwrap());
        }
    }
}
