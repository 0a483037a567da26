//! The step log on stdout: one line a step for `kubectl logs -f`. Names, outcomes, times and token counts;
//! never arguments, results or messages of others, but for what a server says of how far a call is. And the form of
//! warnings, which the kubelet mixes in from stderr.

use std::fmt;
use std::io::Write as _;
use std::sync::{PoisonError, RwLock};

use belay_protocol::cost::Usage;
use belay_protocol::event::ModelResponse;
use belay_protocol::event::{FailureReason, Item, NotSentReason};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::redact::Redactor;
use crate::tools::{PROGRESS_BYTES_KEPT, Progress};

/// The longest warning, and as much of it as is looked at.
const WARNING_BYTES: usize = 512;
const WARNING_BYTES_KEPT: usize = 8 * WARNING_BYTES;
/// The most that is shown of a server's words, and of a number.
const PROGRESS_BYTES: usize = 160;
const NUMBER_CHARACTERS: usize = 12;

/// What the log of this process must not show. There is one log a process, which begins before any credential is known.
static KEPT_SECRET: RwLock<Option<Redactor>> = RwLock::new(None);

/// From now on nothing that this redactor knows is written to stdout or stderr, whoever writes it: libraries put URLs and
/// servers' words into their warnings.
pub fn keep_secret(redactor: Redactor) {
    *KEPT_SECRET.write().unwrap_or_else(PoisonError::into_inner) = Some(redactor);
}

fn redacted(text: &str) -> String {
    let redactor = KEPT_SECRET.read().unwrap_or_else(PoisonError::into_inner);
    redactor.as_ref().map_or_else(|| text.to_owned(), |redactor| redactor.redact(text).into_owned())
}

/// The same for a text of which no more than `most` bytes were kept.
fn redacted_kept(text: &str, most: usize) -> String {
    let redactor = KEPT_SECRET.read().unwrap_or_else(PoisonError::into_inner);
    redactor.as_ref().map_or_else(|| text.to_owned(), |redactor| redactor.redact_kept(text, most).into_owned())
}

/// Writes lines that people and `belay logs` follow.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepLog;

/// Warnings as lines of the step log: a word for their level where steps have theirs, then message and fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct WarningLine;

impl<S, N> FormatEvent<S, N> for WarningLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = String::new();
        context.format_fields(Writer::new(&mut said), event)?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        writeln!(writer, "{level:<7} {}", warning_words(&said))
    }
}

/// What came of a call, as the log spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    Observed,
    ToolError,
    /// Its server asks people something first.
    InputRequired,
    Denied,
    /// People are asked first.
    Asked,
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

    pub fn relisted(self, step: u32, tool: &str, operations: usize, milliseconds: u64) {
        line(&format!(
            "step {step:<2} tool   {:<24}  changed    {operations} operations  {milliseconds} ms",
            word(tool)
        ));
    }

    pub fn relisting_failed(self, step: u32, tool: &str, reason: FailureReason, milliseconds: u64) {
        line(&format!("step {step:<2} tool   {:<24}  failed     {reason:?}  {milliseconds} ms", word(tool)));
    }

    pub fn progressed(self, step: u32, tool: &str, operation: &str, progress: &Progress) {
        let name = format!("{}/{}", word(tool), word(operation));
        line(&format!("step {step:<2} call   {name:<24}  progress   {}", progress_words(progress)));
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

    pub fn model_replaced(self, step: u32, model: &str, by: &str, because: FailureReason) {
        line(&format!("step {step:<2} model  {:<24}  given up   {because:?}  next {}", word(model), word(by)));
    }

    pub fn call(self, step: u32, tool: &str, operation: &str, outcome: CallOutcome, milliseconds: u64) {
        let name = format!("{}/{}", word(tool), word(operation));
        let outcome = match outcome {
            CallOutcome::Observed => "observed ".to_owned(),
            CallOutcome::ToolError => "tool-error".to_owned(),
            CallOutcome::InputRequired => "needs-input".to_owned(),
            CallOutcome::Denied => "denied   ".to_owned(),
            CallOutcome::Asked => "asked    ".to_owned(),
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

fn warning_words(said: &str) -> String {
    told(said.trim(), WARNING_BYTES_KEPT, WARNING_BYTES)
}

fn progress_words(progress: &Progress) -> String {
    let total = progress.total.map_or_else(String::new, |total| format!("/{}", number(total)));
    let message = told(&progress.message, PROGRESS_BYTES_KEPT, PROGRESS_BYTES);
    format!("{}{total}  {message}", number(progress.done))
}

/// Words of others: cut to the `kept` bytes that are worth a look, redacted, and cut to the `most` that are shown; what moves
/// the cursor, turns around or hides is spelled out.
fn told(said: &str, kept: usize, most: usize) -> String {
    let (said, _) = said.split_at(said.floor_char_boundary(kept));
    let mut words = shown(&redacted_kept(said, kept));
    words.truncate(words.floor_char_boundary(most));
    words
}

fn number(value: f64) -> String {
    let plain = value.to_string();
    if plain.len() <= NUMBER_CHARACTERS { plain } else { format!("{value:.3e}") }
}

fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '"' | '\'' | '\\') {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

fn tokens(usage: &Usage) -> String {
    let part = |name: &str, count: Option<u64>| count.map_or(String::new(), |count| format!("  {name}={count}"));
    let input = part("in", usage.input_tokens);
    format!("{input}{}", part("out", usage.output_tokens).replace("  ", if input.is_empty() { "  " } else { " " }))
}

/// Names come from YAML, models and servers: no control characters, no endless lines.
fn word(text: &str) -> String {
    crate::egress::piece(&redacted(text), 128)
}

/// A closed stdout is nobody's problem: the journal holds it all.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", redacted(text.trim_end()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_show_only_what_the_provider_said() {
        let usage = |input_tokens, output_tokens| Usage { input_tokens, output_tokens, ..Usage::default() };
        assert_eq!(tokens(&usage(Some(431), Some(27))), "  in=431 out=27");
        assert_eq!(tokens(&usage(None, Some(27))), "  out=27");
        assert_eq!(tokens(&usage(None, None)), "");
    }

    #[test]
    fn the_end_is_told_without_the_words_of_others() {
        assert_eq!(end_words("Failed (ModelFailed): Model m: the server says: hunter2"), "Failed (ModelFailed)");
        assert_eq!(end_words("Succeeded (Completed)"), "Succeeded (Completed)");
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_warning_is_one_plain_line_that_reads_like_those_of_steps() {
        let lines = Lines::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(WarningLine)
            .with_writer(move || written.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(error = %"broken\nrun     Succeeded", failures = 2, "reconnecting");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "warn    reconnecting error=broken\\nrun     Succeeded failures=2\n");
    }

    #[test]
    fn a_warning_is_cut_and_hides_nothing() {
        assert_eq!(warning_words("a\u{202e}b\u{200b}c\u{1b}[2J"), "a\\u{202e}b\\u{200b}c\\u{1b}[2J");
        assert_eq!(warning_words(&"x".repeat(10_000_000)).len(), WARNING_BYTES);
    }

    #[test]
    fn what_a_server_says_of_progress_is_short_and_hides_nothing() {
        let progress = |done, total, message: &str| Progress { done, total, message: message.to_owned() };
        assert_eq!(progress_words(&progress(3.0, Some(5.0), "indexing \"a\"…")), "3/5  indexing \"a\"…");
        assert_eq!(progress_words(&progress(0.5, None, "")), "0.5  ");
        let odd = progress(1.0, None, "a\nrun     Succeeded\u{1b}[2J\u{202e}\u{200b}");
        assert_eq!(progress_words(&odd), "1  a\\nrun     Succeeded\\u{1b}[2J\\u{202e}\\u{200b}");
        assert_eq!(progress_words(&progress(1e308, Some(-1.5e-9), "")), "1.000e308/-1.500e-9  ");
        assert_eq!(progress_words(&progress(1.0, None, &"é".repeat(1000))).len(), PROGRESS_BYTES + 3);
    }

    #[test]
    fn a_name_with_control_characters_stays_on_its_line() {
        assert_eq!(word("a\nrun Succeeded\u{1b}[2J"), "a run Succeeded [2J");
    }
}
