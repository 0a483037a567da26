//! The most steps that judging by a rule can take. CEL's library in use has no bound of its own and cannot be stopped,
//! so what could take long is refused when a policy is accepted.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, operators};

use crate::source::MATCHES;
use crate::values::ARGS_VALUES_MAX;

/// The most steps of all rules of a policy together: tens of milliseconds.
pub const POLICY_COST_MAX: u64 = 1_000_000;
/// Looking through a text.
const TEXT_COST: u64 = 20;
/// Looking through everything that the arguments may hold, in each round of a walk: no walk can afford it.
const WHOLE_COST: u64 = 300;
/// Additions of one rule: texts and lists grow by them.
const ADDITIONS_MAX: usize = 8;

/// The most steps of evaluating this expression once, over the largest arguments.
///
/// # Errors
/// In words, where it could make values grow without end.
pub fn cost(expression: &IdedExpr) -> Result<u64, String> {
    let mut additions = 0;
    let cost = Walk::None.cost(expression, &mut additions);
    if additions > ADDITIONS_MAX {
        return Err(format!("{additions} additions are more than {ADDITIONS_MAX}: texts and lists grow by them"));
    }
    Ok(cost)
}

/// Whether it is the body of `all`, `exists`, `filter` or `map` that is looked at, and its element's name.
#[derive(Clone, Copy)]
enum Walk<'a> {
    None,
    Over(&'a str),
}

impl Walk<'_> {
    fn cost(self, expression: &IdedExpr, additions: &mut usize) -> u64 {
        let inner = match &expression.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => 0,
            Expr::Select(select) => self.cost(&select.operand, additions),
            Expr::Call(call) => self.call(call, additions),
            Expr::List(list) => list.elements.iter().map(|element| self.cost(element, additions)).sum(),
            Expr::Map(map) => map.entries.iter().map(|entry| self.entry(&entry.expr, additions)).sum(),
            Expr::Struct(literal) => literal.entries.iter().map(|entry| self.entry(&entry.expr, additions)).sum(),
            Expr::Comprehension(it) => self.walk(it, additions),
        };
        inner.saturating_add(1)
    }

    fn call(self, call: &CallExpr, additions: &mut usize) -> u64 {
        let whole = match self {
            Self::None => TEXT_COST,
            Self::Over(_) => WHOLE_COST,
        };
        let own = match call.func_name.as_str() {
            // The elements of one list hold, together, what the arguments may hold.
            MATCHES | "contains" | "startsWith" | "endsWith" | "lowerAscii" | "upperAscii" | "trim" | "size"
                if self.is_about(call) =>
            {
                TEXT_COST
            }
            MATCHES | "contains" | "startsWith" | "endsWith" | "lowerAscii" | "upperAscii" | "trim" | "size" => whole,
            operators::IN => match call.args.get(1).map(|it| &it.expr) {
                Some(Expr::List(list)) => u64::try_from(list.elements.len()).unwrap_or(u64::MAX),
                Some(_) | None => whole,
            },
            operators::ADD if accumulates(call) => 1,
            operators::ADD => {
                *additions += 1;
                whole
            }
            _ => 0, // another operator, or a conversion: one step
        };
        let parts = call.target.as_deref().into_iter().chain(&call.args);
        parts.fold(own, |sum, part| sum.saturating_add(self.cost(part, additions)))
    }

    /// Whether it looks through the element of the walk, rather than through the same text in every round.
    fn is_about(self, call: &CallExpr) -> bool {
        let Self::Over(element) = self else { return false };
        call.target.as_deref().or(call.args.first()).is_some_and(|it| begins_with(it, element))
    }

    fn entry(self, entry: &EntryExpr, additions: &mut usize) -> u64 {
        match entry {
            EntryExpr::StructField(field) => self.cost(&field.value, additions),
            EntryExpr::MapEntry(entry) => {
                self.cost(&entry.key, additions).saturating_add(self.cost(&entry.value, additions))
            }
        }
    }

    /// As many rounds as arguments can hold values, and as many times more as additions may have lengthened the list.
    fn walk(self, it: &ComprehensionExpr, additions: &mut usize) -> u64 {
        let mut lengthened = 0;
        let range = self.cost(&it.iter_range, &mut lengthened);
        *additions += lengthened;
        let body = Walk::Over(&it.iter_var);
        let round = body.cost(&it.loop_cond, additions).saturating_add(body.cost(&it.loop_step, additions));
        let length = ARGS_VALUES_MAX.saturating_mul(lengthened + 1);
        let rounds = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(round);
        range.saturating_add(rounds).saturating_add(self.cost(&it.result, additions))
    }
}

/// Whether the expression is the element itself, or a field, an item or the small-letter form of it.
fn begins_with(expression: &IdedExpr, element: &str) -> bool {
    match &expression.expr {
        Expr::Ident(name) => name == element,
        Expr::Select(select) => begins_with(&select.operand, element),
        Expr::Call(call) => match call.func_name.as_str() {
            operators::INDEX => call.args.first().is_some_and(|it| begins_with(it, element)),
            "lowerAscii" | "upperAscii" | "trim" => call.target.as_deref().is_some_and(|it| begins_with(it, element)),
            _ => false, // anything else may be as long as it likes
        },
        Expr::Unspecified
        | Expr::Literal(_)
        | Expr::List(_)
        | Expr::Map(_)
        | Expr::Struct(_)
        | Expr::Comprehension(_) => false,
    }
}

/// Whether `filter`, `map` or `exists_one` itself adds: what it collects is as long as what it walks over.
fn accumulates(call: &CallExpr) -> bool {
    matches!(call.args.first().map(|it| &it.expr), Some(Expr::Ident(name)) if name.starts_with('@'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;
    use crate::source::{on_a_large_stack, parse};

    fn of(when: &str) -> Result<u64, String> {
        on_a_large_stack(|| cost(parse(when)?.expression())).unwrap()
    }

    #[rstest]
    #[case("args.x == 1")]
    #[case("args.s.contains('a') && args.s.matches('b') && 'c' in args.xs")]
    #[case("args.xs.all(x, x.path.lowerAscii().startsWith('/tmp/') && !x.path.contains('..'))")]
    #[case("args.xs.all(x, x.matches('^a') || x.matches('^b'))")]
    #[case("args.xs.filter(x, x.kind in ['a', 'b', 'c']).size() > 2")]
    #[case("args.owner + '/' + args.repo in ['a/b', 'c/d']")]
    fn what_people_write_is_cheap(#[case] when: &str) {
        assert!(of(when).unwrap() <= POLICY_COST_MAX, "{when}: {:?}", of(when));
    }

    /// Each of these took from one second to minutes over 4,000 elements and a text of 256 KiB.
    #[rstest]
    #[case("args.xs.all(x, !args.s.contains('ab'))")]
    #[case("args.xs.all(x, !args.s.matches('ab'))")]
    #[case("args.xs.all(x, !(x in args.xs))")]
    #[case("args.xs.all(x, x + args.s != 'a')")]
    #[case(
        "(args.xs + args.xs + args.xs + args.xs + args.xs + args.xs).all(x, x.a.b.c.d.contains('a') && x.e.contains('b'))"
    )]
    fn what_would_take_long_is_too_dear(#[case] when: &str) {
        assert!(of(when).unwrap() > POLICY_COST_MAX, "{when}: {:?}", of(when));
    }

    #[test]
    fn additions_are_counted_since_values_grow_by_them() {
        assert!(of(&["args.s"; 9].join(" + ")).is_ok());
        assert!(of(&["args.s"; 10].join(" + ")).unwrap_err().contains("9 additions are more than 8"));
    }
}
