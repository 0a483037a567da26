//! A call's arguments as CEL sees them: exactly, or not at all.

use std::collections::HashMap;
use std::sync::Arc;

use cel::Value as Cel;
use cel::objects::{Key, Map};
use serde_json::{Number, Value};

/// What an Approval can show whole. Larger arguments are never allowed without a person.
pub const ARGS_BYTES_MAX: usize = 256 * 1024;
/// How many values arguments may hold, objects and lists included: what bounds the cost of `all` and `exists`.
pub const ARGS_VALUES_MAX: usize = 4096;
/// Beyond it two integers share one canonical form (RFC 8785).
const EXACT_MAX: u64 = 1 << 53;

/// Why arguments cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsFault {
    #[error("the arguments hold more than {ARGS_BYTES_MAX} bytes")]
    Bytes,
    #[error("the arguments hold more than {ARGS_VALUES_MAX} values")]
    Values,
    #[error("the arguments hold the number {0}, which has no exact form: it belongs into a string")]
    Inexact(String),
}

/// The arguments for CEL. `1`, `1.0` and `1e0` are the integer 1 and `-0` is 0, as in the canonical bytes that people
/// sign; other numbers are doubles; integers beyond 2^53 are refused.
pub fn to_cel(args: &Value) -> Result<Cel, ArgsFault> {
    let mut budget = Budget { bytes: ARGS_BYTES_MAX, values: ARGS_VALUES_MAX };
    convert(args, &mut budget)
}

/// What may still come.
struct Budget {
    bytes: usize,
    values: usize,
}

impl Budget {
    fn bytes(&mut self, bytes: usize) -> Result<(), ArgsFault> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(ArgsFault::Bytes)?;
        Ok(())
    }

    fn value(&mut self) -> Result<(), ArgsFault> {
        self.values = self.values.checked_sub(1).ok_or(ArgsFault::Values)?;
        self.bytes(1)
    }
}

fn convert(value: &Value, budget: &mut Budget) -> Result<Cel, ArgsFault> {
    budget.value()?;
    Ok(match value {
        Value::Null => Cel::Null,
        Value::Bool(it) => Cel::Bool(*it),
        Value::Number(number) => exact(number)?,
        Value::String(text) => {
            budget.bytes(text.len())?;
            Cel::String(Arc::new(text.clone()))
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| convert(item, budget)).collect::<Result<_, _>>()?;
            Cel::List(Arc::new(items))
        }
        Value::Object(fields) => {
            let mut map = HashMap::with_capacity(fields.len().min(ARGS_VALUES_MAX));
            for (name, field) in fields {
                budget.bytes(name.len())?;
                map.insert(Key::String(Arc::new(name.clone())), convert(field, budget)?);
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
    })
}

fn exact(number: &Number) -> Result<Cel, ArgsFault> {
    let inexact = || ArgsFault::Inexact(number.to_string());
    if let Some(magnitude) = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs)) {
        let small = (magnitude <= EXACT_MAX).then_some(number).and_then(Number::as_i64);
        return small.map(Cel::Int).ok_or_else(inexact);
    }
    let double = number.as_f64().filter(|it| it.is_finite()).ok_or_else(inexact)?;
    Ok(whole(double).map_or(Cel::Float(double), Cel::Int))
}

/// The integer that a double stands for, where it is exact.
fn whole(double: f64) -> Option<i64> {
    #[expect(clippy::cast_precision_loss, reason = "2^53 is a double")]
    let within = double.fract() == 0.0 && double.abs() <= EXACT_MAX as f64;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
    within.then_some(double as i64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn number(text: &str) -> Result<Cel, ArgsFault> {
        to_cel(&serde_json::from_str(text).unwrap())
    }

    #[rstest]
    #[case("1", Cel::Int(1))]
    #[case("1.0", Cel::Int(1))]
    #[case("1e0", Cel::Int(1))]
    #[case("-0", Cel::Int(0))]
    #[case("-0.0", Cel::Int(0))]
    #[case("1.5", Cel::Float(1.5))]
    #[case("9007199254740992", Cel::Int(1 << 53))]
    #[case("-9007199254740992", Cel::Int(-(1 << 53)))]
    #[case("9007199254740992.0", Cel::Int(1 << 53))]
    #[case("1e300", Cel::Float(1e300))]
    fn numbers_that_are_one_canonically_are_one_to_a_rule(#[case] text: &str, #[case] expected: Cel) {
        // Compared with their types: 1 and 1.0 are equal in CEL, and only one of them is right here.
        let found = number(text).unwrap();
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    }

    #[rstest]
    #[case("9007199254740993")]
    #[case("-9007199254740993")]
    #[case("18446744073709551615")]
    fn an_integer_that_has_no_exact_form_is_refused(#[case] text: &str) {
        assert_eq!(number(text), Err(ArgsFault::Inexact(text.to_owned())));
        // So is it by the digest that people sign.
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(belay_protocol::digest::canonical(&value).is_err());
    }

    #[test]
    fn serde_json_has_no_arbitrary_precision_in_this_build() {
        let number: Value = serde_json::from_str("1e2").unwrap();
        assert_eq!(number.to_string(), "100.0");
    }

    #[test]
    fn arguments_are_bounded_in_bytes_and_in_values() {
        assert_eq!(to_cel(&json!({"a": "x".repeat(ARGS_BYTES_MAX)})), Err(ArgsFault::Bytes));
        assert_eq!(to_cel(&json!({"x".repeat(ARGS_BYTES_MAX): 1})), Err(ArgsFault::Bytes));
        assert_eq!(to_cel(&json!(vec![1; ARGS_VALUES_MAX])), Err(ArgsFault::Values));
        assert!(to_cel(&json!({"a": "x".repeat(ARGS_BYTES_MAX - 100), "b": vec![1; 90]})).is_ok());
    }
}
