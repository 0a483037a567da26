//! What can be said of a rule before any call is seen: names, functions and types. CEL's library in use has no checker
//! of its own, and reports a misspelt name only when a call comes to it.

use belay_protocol::plan::Effects;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use crate::facts::effects_word;
use crate::source::MATCHES;
use crate::types::{FUNCTIONS, PATTERN_VARIABLES, Type, VARIABLES, function_names};

/// The longest pattern of `matches`.
const PATTERN_CHARACTERS_MAX: usize = 256;
/// The most memory that a compiled pattern takes.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
const EFFECTS: [Effects; 3] = [Effects::None, Effects::Idempotent, Effects::NonIdempotent];

/// Refuses an expression that is not a condition over the variables of a call.
pub fn check(expression: &IdedExpr) -> Result<(), String> {
    check_within(&Scope { what: "a rule", variables: VARIABLES, bound: Vec::new() }, expression)
}

/// Likewise, over the arguments alone.
pub fn check_pattern_of_a_grant(expression: &IdedExpr) -> Result<(), String> {
    check_within(&Scope { what: "a pattern", variables: PATTERN_VARIABLES, bound: Vec::new() }, expression)
}

fn check_within(scope: &Scope, expression: &IdedExpr) -> Result<(), String> {
    let found = scope.type_of(expression)?;
    if found.may_be_one_of(&[Type::Bool]) { Ok(()) } else { Err(format!("gives {}, not true or false", found.word())) }
}

/// The names that an expression can use.
struct Scope {
    what: &'static str,
    variables: &'static [(&'static str, Type)],
    /// Those that `all`, `exists`, `filter` and `map` bring in, and their accumulator.
    bound: Vec<(String, Type)>,
}

impl Scope {
    fn type_of(&self, expression: &IdedExpr) -> Result<Type, String> {
        match &expression.expr {
            Expr::Literal(literal) => literal_type(literal),
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                list.elements.iter().try_for_each(|element| self.type_of(element).map(|_| ()))?;
                Ok(Type::List)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return Err("not a map".to_owned()) };
                    expect("a map's key", self.type_of(&entry.key)?, &[Type::Text])?;
                    self.type_of(&entry.value)?;
                }
                Ok(Type::Map)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(literal) => Err(format!("no type {} is known here", literal.type_name)),
            Expr::Unspecified => Err("not an expression".to_owned()),
        }
    }

    fn variable(&self, name: &str) -> Result<Type, String> {
        let bound = self.bound.iter().rev().find(|(bound, _)| bound == name).map(|(_, it)| *it);
        let known = || self.variables.iter().find(|(known, _)| *known == name).map(|(_, it)| *it);
        bound.or_else(known).ok_or_else(|| {
            let names: Vec<&str> = self.variables.iter().map(|(name, _)| *name).collect();
            format!("unknown name {name}: {} can ask about {}", self.what, names.join(", "))
        })
    }

    fn select(&self, select: &SelectExpr) -> Result<Type, String> {
        let operand = self.type_of(&select.operand)?;
        let found = match operand {
            Type::Dyn | Type::Map => Type::Dyn,
            Type::Record(fields) => field(fields, &select.field)?,
            Type::Bool | Type::Int | Type::Double | Type::Text | Type::Null | Type::List => {
                return Err(format!("{} has no field {}", operand.word(), select.field));
            }
        };
        Ok(if select.test { Type::Bool } else { found })
    }

    fn call(&self, call: &CallExpr) -> Result<Type, String> {
        if let Some(found) = self.operator(call)? {
            return Ok(found);
        }
        let on = call.target.as_deref().map(|target| self.type_of(target)).transpose()?;
        let named: Vec<_> = FUNCTIONS.iter().filter(|function| function.name == call.func_name).collect();
        if named.is_empty() {
            return Err(format!("unknown function {}: a rule can call {}", call.func_name, function_names()));
        }
        let fits = named.iter().find(|f| f.on.is_some() == on.is_some() && f.takes.len() == call.args.len());
        let function = fits.ok_or_else(|| format!("{} is not called like that", call.func_name))?;
        if let Some((found, wanted)) = on.zip(function.on) {
            expect(&format!("what {} is called on", function.word()), found, wanted)?;
        }
        for (argument, wanted) in call.args.iter().zip(function.takes) {
            expect(&format!("what {} is given", function.word()), self.type_of(argument)?, wanted)?;
        }
        if function.name == MATCHES {
            check_pattern(call.args.first())?;
        }
        Ok(function.gives)
    }

    /// The type of a call that is an operator; none for a function's.
    fn operator(&self, call: &CallExpr) -> Result<Option<Type>, String> {
        use operators as op;
        let name = call.func_name.as_str();
        let [first, rest @ ..] = call.args.as_slice() else { return Ok(None) };
        let two = || rest.first().map(|second| Ok::<_, String>((self.type_of(first)?, self.type_of(second)?)));
        let found = match (name, two().transpose()?) {
            (op::LOGICAL_NOT | op::NOT_STRICTLY_FALSE, None) => {
                expect("what ! negates", self.type_of(first)?, &[Type::Bool])?;
                Type::Bool
            }
            (op::NEGATE, None) => {
                let found = self.type_of(first)?;
                expect("what - negates", found, &[Type::Int, Type::Double])?;
                found
            }
            (op::LOGICAL_AND | op::LOGICAL_OR, Some((left, right))) => {
                expect("a side of && or ||", left, &[Type::Bool])?;
                expect("a side of && or ||", right, &[Type::Bool])?;
                Type::Bool
            }
            (op::EQUALS | op::NOT_EQUALS, Some((left, right))) => {
                if !left.may_equal(right) {
                    return Err(format!("compares {} with {}, which are never equal", left.word(), right.word()));
                }
                check_effects(call)?;
                Type::Bool
            }
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, Some((left, right))) => {
                if !left.may_be_ordered_with(right) {
                    return Err(format!("orders {} and {}, which have no order", left.word(), right.word()));
                }
                Type::Bool
            }
            (op::ADD, Some(sides)) => arithmetic("+", sides, &[Type::Int, Type::Double, Type::Text, Type::List])?,
            (op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, Some(sides)) => {
                arithmetic("arithmetic", sides, &[Type::Int, Type::Double])?
            }
            (op::IN, Some((_, right))) => {
                expect("the right side of in", right, &[Type::List, Type::Map])?;
                Type::Bool
            }
            (op::INDEX, Some((left, _))) => {
                expect("what [ ] looks into", left, &[Type::List, Type::Map])?;
                Type::Dyn
            }
            (op::CONDITIONAL, Some((condition, yes))) => {
                expect("the condition of ?:", condition, &[Type::Bool])?;
                rest.get(1).map_or(Ok(Type::Dyn), |no| self.type_of(no).map(|no| yes.or(no)))?
            }
            (_, None | Some(_)) => return Ok(None),
        };
        Ok(Some(found))
    }

    fn comprehension(&self, it: &ComprehensionExpr) -> Result<Type, String> {
        let nested = "all, exists, filter and map do not nest: what they cost could not be bounded";
        if !self.bound.is_empty() {
            return Err(nested.to_owned());
        }
        let range = self.type_of(&it.iter_range)?;
        expect("what all, exists, filter or map walks over", range, &[Type::List, Type::Map])?;
        if self.variables.iter().any(|(known, _)| *known == it.iter_var) {
            return Err(format!("{} is a variable of every rule: name the element otherwise", it.iter_var));
        }
        let element = if range == Type::List || range == Type::Dyn { Type::Dyn } else { Type::Text };
        let accumulated = self.type_of(&it.accu_init)?;
        let bound = vec![(it.iter_var.clone(), element), (it.accu_var.clone(), accumulated)];
        let inner = Scope { bound, ..*self };
        inner.type_of(&it.loop_cond)?;
        inner.type_of(&it.loop_step)?;
        inner.type_of(&it.result)
    }
}

fn literal_type(literal: &LiteralValue) -> Result<Type, String> {
    match literal {
        LiteralValue::Boolean(_) => Ok(Type::Bool),
        LiteralValue::Double(_) => Ok(Type::Double),
        LiteralValue::Int(_) => Ok(Type::Int),
        LiteralValue::Null => Ok(Type::Null),
        LiteralValue::String(_) => Ok(Type::Text),
        LiteralValue::UInt(_) => Err("no number of a call is a uint: leave the u out".to_owned()),
        LiteralValue::Bytes(_) => Err("nothing of a call is bytes: leave the b out".to_owned()),
    }
}

fn field(fields: &'static [(&'static str, Type)], name: &str) -> Result<Type, String> {
    fields.iter().find(|(known, _)| *known == name).map(|(_, it)| *it).ok_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        format!("unknown field {name}: there are {}", names.join(", "))
    })
}

fn expect(what: &str, found: Type, wanted: &[Type]) -> Result<(), String> {
    if found.may_be_one_of(wanted) {
        return Ok(());
    }
    let wanted: Vec<&str> = wanted.iter().map(|it| it.word()).collect();
    Err(format!("{what} is {}, not {}", found.word(), wanted.join(" or ")))
}

fn arithmetic(what: &str, (left, right): (Type, Type), of: &[Type]) -> Result<Type, String> {
    expect(&format!("a side of {what}"), left, of)?;
    expect(&format!("a side of {what}"), right, of)?;
    if left != Type::Dyn && right != Type::Dyn && left != right {
        let hint = "both sides have one type: int(..), double(..) and string(..) convert";
        return Err(format!("{what} between {} and {}: {hint}", left.word(), right.word()));
    }
    Ok(if left == Type::Dyn { right } else { left })
}

/// A misspelt effect would never match, and say nothing.
fn check_effects(call: &CallExpr) -> Result<(), String> {
    let is_effects = |side: &IdedExpr| matches!(&side.expr, Expr::Ident(name) if name == "effects");
    if !call.args.iter().any(is_effects) {
        return Ok(());
    }
    let text = |side: &IdedExpr| match &side.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
        _ => None, // not a text that can be looked at now
    };
    let words = EFFECTS.map(effects_word);
    match call.args.iter().find_map(text).filter(|text| !words.contains(&text.as_str())) {
        Some(text) => Err(format!("effects is never '{text}': it is one of {}", words.join(", "))),
        None => Ok(()),
    }
}

/// A pattern that a model could write would be a pattern that a model can make expensive.
fn check_pattern(pattern: Option<&IdedExpr>) -> Result<(), String> {
    let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern.map(|it| &it.expr) else {
        return Err("the pattern of matches is a text in quotes, nothing computed".to_owned());
    };
    let length = pattern.inner().chars().count();
    if length > PATTERN_CHARACTERS_MAX {
        return Err(format!("a pattern of {length} characters is longer than {PATTERN_CHARACTERS_MAX}"));
    }
    let compiled = regex::RegexBuilder::new(pattern.inner()).size_limit(PATTERN_BYTES_MAX).build();
    compiled.map(|_| ()).map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("the pattern '{}' cannot be used: {last}", pattern.inner())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;
    use crate::source::{on_a_large_stack, parse};

    fn checked(when: &str) -> Result<(), String> {
        on_a_large_stack(|| check(parse(when)?.expression())).unwrap()
    }

    #[rstest]
    #[case("args.repo != 'prod'")]
    #[case("operation.startsWith('delete_')")]
    #[case("has(args.force) && args.force == true")]
    #[case("!has(args.dryRun) || !args.dryRun")]
    #[case("args.amount < 100 && args.amount >= 0.5")]
    #[case("effects == 'None' || 'Idempotent' == effects")]
    #[case("tool in ['a', 'b'] && 'x' in args")]
    #[case("args.paths.all(p, p.startsWith('/tmp/') && !p.contains('..'))")]
    #[case("args.items.exists(i, i.kind == 'secret')")]
    #[case("args.items.exists_one(i, i == 1)")]
    #[case("args.items.filter(i, i.n > 1).size() > 2")]
    #[case("args.items.map(i, i.n).exists(n, n == 3)")]
    #[case("args.all(name, name in ['a', 'b'])")]
    #[case("args.url.matches('^https://[a-z.]+/')")]
    #[case("args.path.lowerAscii().trim().endsWith('.md')")]
    #[case("size(args.body) < 1000 && args.body.size() > 0")]
    #[case("agent.name == 'triage' && agent.namespace != 'prod' && run.requestedBy != ''")]
    #[case("spend.steps < 10 && (!has(spend.costMicroUSD) || spend.costMicroUSD < 500000)")]
    #[case("double(args.amount) * 1.5 < 30.0")]
    #[case("args.x == null || args['x'][0] == {'a': 1}['a']")]
    #[case("(args.force ? args.n : 0) < 3")]
    #[case("true")]
    fn a_condition_over_a_call_is_accepted(#[case] when: &str) {
        assert_eq!(checked(when), Ok(()));
    }

    #[rstest]
    #[case("arg.x == 1", "unknown name arg: a rule can ask about tool, operation, args")]
    #[case("args.x == int", "unknown name int")]
    #[case(".args.x == 1", "unknown name .args")]
    #[case("agent.nmae == 'x'", "unknown field nmae: there are name, namespace")]
    #[case("has(spend.costUSD)", "unknown field costUSD: there are steps, tokens, costMicroUSD")]
    #[case("tool.name == 'x'", "string has no field name")]
    #[case("args.x.beginsWith('a')", "unknown function beginsWith: a rule can call size, startsWith")]
    #[case("args.x.replace('a', 'b') == ''", "unknown function replace")]
    #[case("optional.of(args.x).hasValue()", "unknown name optional")]
    #[case("timestamp(args.x) < timestamp('2027-01-01T00:00:00Z')", "unknown function timestamp")]
    #[case("args.x.startsWith()", "startsWith is not called like that")]
    #[case("startsWith(args.x, 'a')", "startsWith is not called like that")]
    #[case("args.x", "")]
    #[case("args.x + 'a'", "gives string, not true or false")]
    #[case("size(args)", "gives int, not true or false")]
    #[case("operation", "gives string, not true or false")]
    #[case("tool == 1", "compares string with int, which are never equal")]
    #[case("size(args) == '1'", "compares int with string, which are never equal")]
    #[case("agent == 'triage'", "compares map with string")]
    #[case("tool < 1", "orders string and int, which have no order")]
    #[case("args < 1", "orders map and int, which have no order")]
    #[case("tool && true", "a side of && or || is string, not bool")]
    #[case("true || operation", "a side of && or || is string, not bool")]
    #[case("!operation", "what ! negates is string, not bool")]
    #[case("-tool == 1", "what - negates is string")]
    #[case("tool + 1 == 'x'", "+ between string and int: both sides have one type")]
    #[case("spend.steps * 1.5 > 3", "arithmetic between int and double")]
    #[case("tool - 'a' == ''", "a side of arithmetic is string")]
    #[case("1 in tool", "the right side of in is string")]
    #[case("tool[0] == 'a'", "what [ ] looks into is string")]
    #[case("tool ? true : false", "the condition of ?: is string")]
    #[case("tool.contains(1)", "what contains is given is int, not string")]
    #[case("spend.contains('x')", "what contains is called on is map, not string")]
    #[case("tool.exists(c, c == 'a')", "what all, exists, filter or map walks over is string")]
    #[case("args.all(k, k > 1)", "orders string and int")]
    #[case("args.xs.exists(tool, tool == 'a')", "tool is a variable of every rule")]
    #[case("args.xs.all(x, args.ys.all(y, x == y))", "do not nest")]
    #[case("args.xs.exists(x, x.ys.filter(y, y > 1).size() > 1)", "do not nest")]
    #[case("args.xs.all(x, x + 1)", "a side of && or || is int")]
    #[case("args.xs.all(x, 'a' + 'b')", "a side of && or || is string")]
    #[case("effects == 'none'", "effects is never 'none': it is one of None, Idempotent, NonIdempotent")]
    #[case("'Idem' != effects", "effects is never 'Idem'")]
    #[case("args.x == 5u", "leave the u out")]
    #[case("args.x == b'a'", "leave the b out")]
    #[case("Foo{a: 1} == args.x", "no type Foo is known here")]
    #[case("{1: 2}[1] == 2", "a map's key is int, not string")]
    #[case("args.x.matches(args.pattern)", "the pattern of matches is a text in quotes")]
    #[case("args.x.matches('(')", "the pattern '(' cannot be used")]
    #[case("args.x.matches('(a{100}){100}')", "cannot be used")]
    fn what_could_never_work_is_refused_in_these_words(#[case] when: &str, #[case] words: &str) {
        // Where the words are empty, nothing can be known before a call is seen.
        match checked(when) {
            Ok(()) => assert_eq!(words, "", "{when}"),
            Err(found) => assert!(!words.is_empty() && found.contains(words), "{when}: {found}"),
        }
    }
}
