//! Patterns that people allow for the rest of a run: conditions like those of rules, over the arguments alone.

use cel::{Context, Program, Value as Cel};
use serde_json::Value;

use crate::check::check_pattern_of_a_grant;
use crate::cost::cost;
use crate::source::{environment, on_a_large_stack, parse};
use crate::values::to_cel;

/// The most steps of one pattern: a run may hold many of them.
pub const PATTERN_COST_MAX: u64 = 500_000;

/// A pattern that can be asked about arguments.
#[derive(Debug)]
pub struct Pattern(Program);

impl Pattern {
    /// Checks the condition and makes it ready, on a stack of its own.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn compile(when: &str) -> Result<Self, String> {
        on_a_large_stack(|| Self::compile_here(when))?
    }

    /// Likewise, where the caller is on a large stack already.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn compile_here(when: &str) -> Result<Self, String> {
        let program = parse(when)?;
        check_pattern_of_a_grant(program.expression())?;
        let cost = cost(program.expression())?;
        if cost > PATTERN_COST_MAX {
            return Err(format!(
                "it could take {cost} steps over the largest arguments, more than {PATTERN_COST_MAX}: look through one \
                 list once, and through little of each element"
            ));
        }
        Ok(Self(program))
    }

    /// Whether the arguments fit.
    ///
    /// # Errors
    /// In words, where that cannot be found out: then they do not.
    pub fn fits(&self, args: &Value) -> Result<bool, String> {
        let mut context = Context::with_env(environment());
        context.add_variable_from_value("args", to_cel(args).map_err(|fault| fault.to_string())?);
        match self.0.execute(&context) {
            Ok(Cel::Bool(fits)) => Ok(fits),
            Ok(other) => Err(format!("gives {}, not true or false", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("args.repo == 'x'", true)]
    #[case("args.repo == 'y'", false)]
    #[case("true", true)]
    #[case("args.paths.all(p, p.startsWith('/tmp/') && !p.contains('..'))", true)]
    #[case("args.n <= 3", true)]
    #[case("args.n <= 2.5", false)]
    fn a_pattern_is_a_condition_over_the_arguments(#[case] when: &str, #[case] fits: bool) {
        let args = json!({"repo": "x", "paths": ["/tmp/a"], "n": 3});
        assert_eq!(Pattern::compile(when).unwrap().fits(&args), Ok(fits));
    }

    #[rstest]
    #[case("tool == 'github'", "unknown name tool: a pattern can ask about args")]
    #[case("run.requestedBy == 'ada'", "unknown name run: a pattern can ask about args")]
    #[case("spend.steps < 3", "unknown name spend")]
    #[case("args.x +", "not CEL: line 1")]
    #[case("size(args)", "gives int, not true or false")]
    #[case("args.xs.all(x, args.ys.all(y, x == y))", "do not nest")]
    #[case("args.xs.all(x, !args.s.contains('ab'))", "more than 500000")]
    #[case("(", "not CEL")]
    fn what_is_none_is_refused_before_anybody_gives_it(#[case] when: &str, #[case] words: &str) {
        let refused = Pattern::compile(when).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }

    #[test]
    fn a_pattern_that_cannot_be_evaluated_fits_nothing() {
        let pattern = Pattern::compile("args.repo == 'x'").unwrap();
        assert!(pattern.fits(&json!({})).is_err(), "the argument is not there");
        assert!(pattern.fits(&json!({"repo": "x", "n": 9_007_199_254_740_993_u64})).is_err(), "no exact form");
        assert!(Pattern::compile("args.repo").unwrap().fits(&json!({"repo": "x"})).is_err(), "no condition");
    }
}
