//! Tokens and money, exact: integer micro-USD a million tokens, summed in pico-USD and rounded once.

use serde::{Deserialize, Serialize};

/// What one model request used, as far as the provider said; what it did not say is absent, not zero. `input`
/// includes `cached_input` and `cache_write`, `output` includes `reasoning`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Input that was written to the provider's cache, where that has a price of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
}

impl Usage {
    /// Input, cached included, plus output; what is unknown counts nothing here.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input_tokens.unwrap_or(0).saturating_add(self.output_tokens.unwrap_or(0))
    }

    /// Both added up; unknown only where neither side knows.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            input_tokens: add(self.input_tokens, other.input_tokens),
            cached_input_tokens: add(self.cached_input_tokens, other.cached_input_tokens),
            output_tokens: add(self.output_tokens, other.output_tokens),
            cache_write_tokens: add(self.cache_write_tokens, other.cache_write_tokens),
            reasoning_tokens: add(self.reasoning_tokens, other.reasoning_tokens),
        }
    }
}

fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
    }
}

/// Prices in micro-USD a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prices {
    pub input: u64,
    /// Absent: cached input costs what input costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Absent: writing the cache costs what input costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    pub output: u64,
}

/// An amount in pico-USD (a millionth of a micro-USD), so that sums of small requests stay exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Prices {
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Cost {
        let input = usage.input_tokens.unwrap_or(0);
        let cached = usage.cached_input_tokens.unwrap_or(0).min(input);
        let written = usage.cache_write_tokens.unwrap_or(0).min(input - cached);
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        Cost(
            part(input - cached - written, self.input)
                + part(written, self.cache_write.unwrap_or(self.input))
                + part(cached, self.cached_input.unwrap_or(self.input))
                + part(usage.output_tokens.unwrap_or(0), self.output),
        )
    }
}

impl Cost {
    #[must_use]
    pub fn of_micro_usd(micro_usd: u64) -> Self {
        Self(u128::from(micro_usd) * 1_000_000)
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Whole micro-USD, rounded up: a budget is never exceeded by rounding.
    #[must_use]
    pub fn micro_usd(self) -> u64 {
        u64::try_from(self.0.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices =
        Prices { input: 3_000_000, cached_input: Some(300_000), cache_write: Some(3_750_000), output: 15_000_000 };

    #[test]
    fn cached_input_is_part_of_input_and_priced_apart() {
        let usage = Usage {
            input_tokens: Some(1000),
            cached_input_tokens: Some(400),
            output_tokens: Some(10),
            ..Usage::default()
        };
        // 600 * 3 + 400 * 0.3 + 10 * 15 micro-USD.
        assert_eq!(PRICES.cost(&usage).micro_usd(), 1800 + 120 + 150);
    }

    #[test]
    fn writing_the_cache_is_part_of_input_and_reasoning_part_of_output() {
        let usage = Usage {
            input_tokens: Some(1000),
            cached_input_tokens: Some(400),
            output_tokens: Some(10),
            cache_write_tokens: Some(500),
            reasoning_tokens: Some(9),
        };
        // 100 * 3 + 400 * 0.3 + 500 * 3.75 + 10 * 15 micro-USD.
        assert_eq!(PRICES.cost(&usage).micro_usd(), 300 + 120 + 1875 + 150);
        let unpriced = Prices { cache_write: None, ..PRICES };
        assert_eq!(unpriced.cost(&usage).micro_usd(), 600 * 3 + 120 + 150);
        // A provider that counts more parts than there is input is charged for no more than the input.
        let absurd = Usage { cache_write_tokens: Some(5000), ..usage };
        assert_eq!(PRICES.cost(&absurd).micro_usd(), 120 + 600 * 15 / 4 + 150);
    }

    #[test]
    fn many_small_requests_cost_what_one_large_one_does() {
        let small = Usage { input_tokens: Some(1), ..Usage::default() };
        let prices = Prices { input: 100_000, cached_input: None, cache_write: None, output: 0 };
        let sum = (0..10).fold(Cost::default(), |sum, _| sum.plus(prices.cost(&small)));
        assert_eq!(sum.micro_usd(), 1);
    }

    #[test]
    fn what_nobody_reported_stays_unknown() {
        let sum = Usage::default().plus(&Usage { output_tokens: Some(3), ..Usage::default() });
        assert_eq!(sum, Usage { output_tokens: Some(3), ..Usage::default() });
    }
}
