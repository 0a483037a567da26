//! The step log on stdout: one line a step for `kubectl logs -f`. Names, outcomes, times and token counts;
//! never arguments, results or messages of others.

use std::io::Write as _;

use belay_protocol::cost::Usage;
use belay_protocol::event::ModelResponse;
use belay_protocol::event::{FailureReason, Item, NotSentReason};

/// Writes lines that people and `belay logs` follow.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepLog;

/// What came of a call, as the log spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    Observed,
    ToolError,
    Denied,
    NotSent(NotSentReason),
    Unknown,
    /// As unknown, but to be sent again.
    Interrupted,
}

impl StepLog {
    pub fn listed(self, tool: &str, operations: usize, milliseconds: u64) {
        line(&format!("start   tool   {:<24}  listed     {operations} operations  {milliseconds} ms", word(tool)));
    }

    pub fn listing_failed(self, tool: &str, reason: FailureReason, milliseconds: u64) {
        line(&format!("start   tool   {:<24}  failed     {reason:?}  {milliseconds} ms", word(tool)));
    }

    pub fn responded(self, step: u32, model: &str, response: &ModelResponse) {
        let calls = response.items.iter().filter(|item| matches!(item, Item::ToolCall { .. })).count();
        line(&format!(
            "step {step:<2} model  {:<24}  responded  {calls} {}  {} ms{}",
            word(model),
            if calls == 1 { "call" } else { "calls" },
            response.milliseconds,
            tokens(&response.usage),
        ));
    }

    pub fn model_failed(self, step: u32, model: &str, reason: FailureReason, milliseconds: u64) {
        line(&format!("step {step:<2} model  {:<24}  failed     {reason:?}  {milliseconds} ms", word(model)));
    }

    pub fn call(self, step: u32, tool: &str, operation: &str, outcome: CallOutcome, milliseconds: u64) {
        let name = format!("{}/{}", word(tool), word(operation));
        let outcome = match outcome {
            CallOutcome::Observed => "observed ".to_owned(),
            CallOutcome::ToolError => "tool-error".to_owned(),
            CallOutcome::Denied => "denied   ".to_owned(),
            CallOutcome::NotSent(reason) => format!("not-sent   {reason:?}"),
            CallOutcome::Unknown => "unknown  ".to_owned(),
            CallOutcome::Interrupted => "interrupted".to_owned(),
        };
        line(&format!("step {step:<2} call   {name:<24}  {outcome}  {milliseconds} ms"));
    }

    /// The last line. `end` begins with the operator's words for it, and may go on with others'.
    pub fn end(self, end: &str) {
        line(&format!("run     {}", end_words(end)));
    }
}

fn end_words(end: &str) -> String {
    word(end.split_once(": ").map_or(end, |(words, _message)| words))
}

fn tokens(usage: &Usage) -> String {
    let part = |name: &str, count: Option<u64>| count.map_or(String::new(), |count| format!("  {name}={count}"));
    let input = part("in", usage.input_tokens);
    format!("{input}{}", part("out", usage.output_tokens).replace("  ", if input.is_empty() { "  " } else { " " }))
}

/// Names come from YAML, models and servers: no control characters, no endless lines.
fn word(text: &str) -> String {
    crate::egress::piece(text, 128)
}

/// A closed stdout is nobody's problem: the journal holds it all.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_show_only_what_the_provider_said() {
        let usage = |input_tokens, output_tokens| Usage { input_tokens, output_tokens, cached_input_tokens: None };
        assert_eq!(tokens(&usage(Some(431), Some(27))), "  in=431 out=27");
        assert_eq!(tokens(&usage(None, Some(27))), "  out=27");
        assert_eq!(tokens(&usage(None, None)), "");
    }

    #[test]
    fn the_end_is_told_without_the_words_of_others() {
        assert_eq!(end_words("Failed (ModelFailed): Model m: the server says: hunter2"), "Failed (ModelFailed)");
        assert_eq!(end_words("Succeeded (Completed)"), "Succeeded (Completed)");
    }

    #[test]
    fn a_name_with_control_characters_stays_on_its_line() {
        assert_eq!(word("a\nrun Succeeded\u{1b}[2J"), "a run Succeeded [2J");
    }
}
