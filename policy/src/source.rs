//! From the text of a `when` to its syntax tree. The parser recurses without a bound that would fit a stack, so the
//! text is measured before it sees it, and it runs on a stack of its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, Expr};
use cel::common::types::{CelBool, CelString, STRING_TYPE};
use cel::common::value::CowVal;
use cel::parser::Macro;
use cel::{DeclarationError, Env, ExecutionError, Program, extensions};
use regex::Regex;

/// What `matches` becomes when it is parsed: no text can call it by this name.
pub const MATCHES: &str = "@matches";
/// Patterns that one thread keeps ready.
const PATTERNS_MAX: usize = 256;

/// As the schema says.
pub const WHEN_CHARACTERS_MAX: usize = 1024;
/// How deep brackets of any kind may nest.
const NESTING_MAX: usize = 12;
/// Operators, dots and opening brackets. `&&` and `||` are free: the parser balances them.
const STEPS_MAX: usize = 200;
/// Several times what the deepest text within those bounds takes in a build without optimisation; only what is used
/// of it is ever backed by memory.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;

/// The functions of CEL that rules may call, and no clock.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    // Fails only where a function is declared twice: then what is missing is undeclared, and calling it an error.
    let _ = extend(&mut env);
    Arc::new(env)
});

fn extend(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_extension(extensions::strings)?;
    env.add_macro(Macro::receiver("matches", 1, |helper, target, args| {
        let call =
            CallExpr { func_name: MATCHES.to_owned(), target: target.take().map(Box::new), args: std::mem::take(args) };
        Ok(Some(helper.next_expr(Expr::Call(call))))
    }))?;
    env.add_member_overload(MATCHES, "string_matches_once_compiled", STRING_TYPE, vec![STRING_TYPE], matches)
}

/// The library's own `matches` compiles its pattern for every element that a rule walks over: minutes, measured.
#[expect(clippy::needless_pass_by_value, reason = "what the library takes as a function")]
fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    thread_local! {
        static READY: RefCell<HashMap<String, Regex>> = RefCell::new(HashMap::new());
    }
    let text = |at: usize| arguments.get(at).and_then(|value| value.downcast_ref::<CelString>()).map(CelString::inner);
    let (Some(text), Some(pattern)) = (text(0), text(1)) else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    READY.with_borrow_mut(|ready| {
        if let Some(known) = ready.get(pattern) {
            return Ok(CowVal::owned(CelBool::from(known.is_match(text))));
        }
        let compiled = Regex::new(pattern).map_err(|error| ExecutionError::function_error("matches", error))?;
        let found = compiled.is_match(text);
        if ready.len() >= PATTERNS_MAX {
            ready.clear();
        }
        ready.insert(pattern.to_owned(), compiled);
        Ok(CowVal::owned(CelBool::from(found)))
    })
}

pub fn environment() -> Arc<Env> {
    Arc::clone(&ENVIRONMENT)
}

/// Runs `work` on a stack that is large enough for whatever passes [`parse`].
///
/// # Errors
/// In words, where no thread could be started or the work did not come to its end.
pub fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("policy-parse".to_owned()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, work).map_err(|error| format!("no thread to parse on: {error}"))?;
        running.join().map_err(|_| "the parser gave up".to_owned())
    })
}

/// Parses one `when`. To be called on a large stack.
///
/// # Errors
/// What is wrong with it, in one line, with line and column.
pub fn parse(when: &str) -> Result<Program, String> {
    measure(when)?;
    ENVIRONMENT.compile(when).map_err(|errors| {
        let first = errors.errors.first();
        first.map_or_else(
            || "not CEL".to_owned(),
            |error| format!("not CEL: line {} column {}: {}", error.pos.0, error.pos.1, one_line(&error.msg)),
        )
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// Counts what the parser would recurse over. What is inside of quotes counts for nothing.
fn measure(when: &str) -> Result<(), String> {
    let length = when.chars().count();
    if length > WHEN_CHARACTERS_MAX {
        return Err(format!("{length} characters are more than {WHEN_CHARACTERS_MAX}: split the rule"));
    }
    let (mut depth, mut deepest, mut steps) = (0_usize, 0_usize, 0_usize);
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for character in when.chars() {
        if let Some(end) = quote {
            quote = if character == end && !escaped { None } else { quote };
            escaped = character == '\\' && !escaped;
            continue;
        }
        match character {
            '\'' | '"' => quote = Some(character),
            '(' | '[' | '{' => {
                depth += 1;
                steps += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '+' | '-' | '*' | '/' | '%' | '!' | '<' | '>' | '=' | '.' | '?' | ':' => steps += 1,
            _ => {}
        }
    }
    // `a in b in c` nests like any operator, without a character of its own.
    steps += when.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| *word == "in").count();
    if deepest > NESTING_MAX {
        return Err(format!("brackets nest {deepest} deep, which is more than {NESTING_MAX}: split the rule"));
    }
    if steps > STEPS_MAX {
        return Err(format!("{steps} operators, dots and brackets are more than {STEPS_MAX}: split the rule"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parsed(when: &str) -> Result<(), String> {
        on_a_large_stack(|| parse(when).map(|_| ())).unwrap()
    }

    /// Each of these, unmeasured, ends the process: the parser's stack overflows.
    #[rstest]
    #[case(vec!["1"; 500].join("+"))]
    #[case(vec!["1"; 500].join("<"))]
    #[case(vec!["1"; 300].join(" in "))]
    #[case(format!("{}1{}", "(".repeat(400), ")".repeat(400)))]
    #[case("(".repeat(1000))]
    #[case("[".repeat(1000))]
    #[case("f(".repeat(400))]
    #[case(format!("a{}", "[0]".repeat(300)))]
    #[case(format!("'a'{}", ".size()".repeat(140)))]
    #[case("'".to_owned() + &"(".repeat(20) + "' == " + &"(".repeat(20))]
    fn a_text_that_the_parser_would_not_survive_is_refused_before_it(#[case] when: String) {
        assert!(parsed(&when).unwrap_err().contains("more than"), "{when}");
    }

    #[rstest]
    #[case(vec!["1"; 199].join("+"))]
    #[case(vec!["1"; 199].join("<"))]
    #[case(vec!["1"; 190].join(" in "))]
    #[case(format!("a{}", "[0]".repeat(199)))]
    #[case(format!("'a'{}", ".size()".repeat(99)))]
    #[case("!".repeat(199) + "true")]
    #[case(format!("{}1", "a?b:".repeat(90)))]
    #[case(format!("{}{}", "[".repeat(12), "]".repeat(12)))]
    #[case(format!("{}{}", "[(".repeat(6), ")]".repeat(6)))]
    #[case(vec!["true"; 120].join("||"))]
    fn the_worst_text_within_the_bounds_does_not_exhaust_the_stack(#[case] when: String) {
        assert_eq!(measure(&when), Ok(()), "it never comes to the parser");
        let _ = parsed(&when);
    }

    #[test]
    fn quotes_hide_what_is_no_operator() {
        assert_eq!(parsed(&format!("operation != '{}'", "(+".repeat(300))), Ok(()));
        assert_eq!(parsed(&format!("operation != \"\\\"{}\"", "(+".repeat(300))), Ok(()));
    }

    #[test]
    fn what_is_no_cel_is_said_with_its_place() {
        assert!(parsed("args.x ==").unwrap_err().starts_with("not CEL: line 1 column"));
        assert!(parsed("").unwrap_err().starts_with("not CEL: line 1 column"));
        assert!(parsed("args.?x").unwrap_err().contains("unsupported syntax"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_text_takes_the_parser_down(text in "\\PC{0,60}", glue in "[a-z.()\\[\\]{}'\"!&|<>=+*/%?:, 0-9\\\\-]{0,80}") {
            let _ = parsed(&text);
            let _ = parsed(&glue);
        }
    }
}
