//! For people: a line a span, its bar where it lies in the run. Text of models, servers and people is made visible.

use belay_crds::visible;
use belay_protocol::cost::Cost;
use belay_protocol::trace::{
    AskSpan, CallSpan, Decided, DecisionSpan, ModelOutcome, ModelSpan, RestSpan, Span, TraceId, What,
};
use console::{Alignment, pad_str, truncate_str};

use super::Trace;
use super::totals::{Totals, totals};
use crate::journal;

/// What it is printed on.
#[derive(Clone, Copy)]
pub enum Page {
    /// Lines are cut to the width.
    Terminal { width: usize },
    /// A file or another program: whole lines of ASCII bars.
    Plain,
}

/// Columns that are as wide as they are, gaps included: START, TOOK, TOKENS, COST.
const FIXED: usize = 8 + 9 + 9 + 11;
const WHAT_MAX: usize = 44;
const BAR_MAX: usize = 40;
const BAR_MIN: usize = 8;
const PLAIN_BAR: usize = 30;

/// How wide each column is that varies. `detail` None: as long as it is.
struct Columns {
    what: usize,
    bar: usize,
    detail: Option<usize>,
    glyphs: Glyphs,
}

struct Glyphs {
    closed: char,
    open: char,
    instant: char,
}

struct Row {
    start: String,
    took: String,
    what: String,
    bar: String,
    tokens: String,
    cost: String,
    detail: String,
}

pub fn render(trace: &Trace, page: Page) -> Vec<String> {
    let columns = columns(trace, page);
    let header = Row {
        start: "START".into(),
        took: "TOOK".into(),
        what: "WHAT".into(),
        bar: String::new(),
        tokens: "TOKENS".into(),
        cost: "COST".into(),
        detail: "DETAIL".into(),
    };
    let began = trace.spans.iter().map(|span| span.start).min().unwrap_or(trace.as_of);
    let ended = trace.spans.iter().filter_map(|span| span.end).max().unwrap_or(trace.as_of).max(trace.as_of);
    let scale = Scale { began, ended, cells: columns.bar };
    let rows = trace.spans.iter().map(|span| row(span, &scale, &columns.glyphs));
    let lines = std::iter::once(header).chain(rows).map(|row| line(&row, &columns));
    let title = format!("run {}/{}, trace {}", trace.run.namespace, trace.run.name, TraceId::of(&trace.run.uid));
    let around = |text: String| match page {
        Page::Terminal { width } => truncate_str(&text, width, "…").into_owned(),
        Page::Plain => text,
    };
    let totals = sums(&totals(trace)).into_iter().map(around);
    [around(visible(&title)), String::new()].into_iter().chain(lines).chain([String::new()]).chain(totals).collect()
}

fn columns(trace: &Trace, page: Page) -> Columns {
    let widest = trace.spans.iter().map(|span| console::measure_text_width(&what(span))).max().unwrap_or(0).max(4);
    match page {
        Page::Plain => {
            let glyphs = Glyphs { closed: '=', open: '>', instant: '|' };
            Columns { what: widest, bar: PLAIN_BAR, detail: None, glyphs }
        }
        Page::Terminal { width } => {
            // Three gaps of one beside WHAT, the bar and DETAIL.
            let left = width.saturating_sub(FIXED + 3);
            let what = widest.min(WHAT_MAX).min(left / 2);
            let bar = (left.saturating_sub(what) / 2).clamp(BAR_MIN.min(left), BAR_MAX);
            let glyphs = Glyphs { closed: '━', open: '╌', instant: '╿' };
            Columns { what, bar, detail: Some(left.saturating_sub(what + bar)), glyphs }
        }
    }
}

fn line(row: &Row, columns: &Columns) -> String {
    let what = pad_str(&row.what, columns.what, Alignment::Left, Some("…"));
    let bar = pad_str(&row.bar, columns.bar, Alignment::Left, None);
    let detail = match columns.detail {
        Some(width) => truncate_str(&row.detail, width, "…"),
        None => row.detail.as_str().into(),
    };
    let (start, took, tokens, cost) = (&row.start, &row.took, &row.tokens, &row.cost);
    format!("{start:>7} {took:>8} {what} {bar} {tokens:>8} {cost:>10} {detail}").trim_end().to_owned()
}

fn row(span: &Span, scale: &Scale, glyphs: &Glyphs) -> Row {
    let (tokens, cost) = spent(span);
    Row {
        start: duration(u64::try_from(span.start.saturating_sub(scale.began)).unwrap_or(0)),
        took: span.took().map_or_else(|| "open".to_owned(), duration),
        what: what(span),
        bar: scale.bar(span, glyphs),
        tokens: tokens.map(|tokens| tokens.to_string()).unwrap_or_default(),
        cost: cost.map(money).unwrap_or_default(),
        detail: visible(detail(span).trim_end()),
    }
}

fn what(span: &Span) -> String {
    format!("{}{}", "  ".repeat(span.depth()), visible(&span.name()))
}

/// Tokens and micro-USD, where they are known.
fn spent(span: &Span) -> (Option<u64>, Option<u64>) {
    let counted = |usage: &belay_protocol::cost::Usage| {
        (usage.input_tokens.is_some() || usage.output_tokens.is_some()).then(|| usage.total())
    };
    match &span.what {
        What::Run(run) => (counted(&run.usage), run.cost.map(Cost::micro_usd)),
        What::Model(model) => match &model.outcome {
            Some(ModelOutcome::Responded { usage, cost, .. }) => (counted(usage), cost.map(Cost::micro_usd)),
            Some(ModelOutcome::Failed { .. }) | None => (None, None),
        },
        What::Rest(_) | What::Epoch(_) | What::PodStart(_) | What::Decision(_) | What::Ask(_) | What::Call(_) => {
            (None, None)
        }
    }
}

/// From the run's begin to its newest record, on so many cells.
struct Scale {
    began: i64,
    ended: i64,
    cells: usize,
}

impl Scale {
    /// At least one cell, however short it was.
    fn bar(&self, span: &Span, glyphs: &Glyphs) -> String {
        if self.cells == 0 {
            return String::new();
        }
        let first = self.cell(span.start).min(self.cells - 1);
        let after = self.cell(span.end.unwrap_or(self.ended)).clamp(first + 1, self.cells);
        let glyph = match (&span.what, span.end) {
            (What::Decision(_), _) => glyphs.instant,
            (_, Some(_)) => glyphs.closed,
            (_, None) => glyphs.open,
        };
        let filled = std::iter::repeat_n(glyph, after - first);
        std::iter::repeat_n(' ', first).chain(filled).collect()
    }

    fn cell(&self, at: i64) -> usize {
        let length = u128::from(self.ended.abs_diff(self.began)).max(1);
        let into = u128::try_from(at.saturating_sub(self.began)).unwrap_or(0);
        usize::try_from(into * self.cells as u128 / length).unwrap_or(self.cells)
    }
}

fn detail(span: &Span) -> String {
    match &span.what {
        What::Run(run) => match &run.end {
            Some(end) => format!("{:?} ({:?}) {}", end.outcome, end.reason, end.message),
            None => "has not ended".into(),
        },
        What::Rest(RestSpan { after: None }) => "queued".into(),
        What::Rest(RestSpan { after: Some(cause) }) => format!("no pod since the last one ended: {cause:?}"),
        What::Epoch(epoch) => {
            let end = epoch.cause.map(|cause| format!(", {cause:?}")).unwrap_or_default();
            format!("{}, pod {}{end}", epoch.number, epoch.pod_name)
        }
        What::PodStart(start) if start.claimed || span.end.is_none() => String::new(),
        What::PodStart(_) => "its runner never came".into(),
        What::Model(model) => model_detail(model),
        What::Decision(decision) => decision_detail(decision),
        What::Ask(ask) => ask_detail(ask, span.end),
        What::Call(call) => call_detail(call),
    }
}

fn model_detail(model: &ModelSpan) -> String {
    let attempt = if model.attempt > 1 { format!(", attempt {}", model.attempt) } else { String::new() };
    let outcome = match &model.outcome {
        None => String::new(),
        Some(ModelOutcome::Responded { finish, .. }) => {
            let first = model.first_chunk_milliseconds().map(|first| format!(", begun after {}", duration(first)));
            format!(": {finish:?}{}", first.unwrap_or_default())
        }
        Some(ModelOutcome::Failed { reason, message }) => format!(": {reason:?}: {message}"),
    };
    format!("step {}{attempt}{outcome}", model.step)
}

fn decision_detail(decision: &DecisionSpan) -> String {
    let decided = match &decision.decided {
        Decided::Allowed(by) => format!("allowed by {by}"),
        Decided::Denied { reason, message } => format!("denied: {reason:?}: {message}"),
        Decided::Asked(policies) => format!("people are asked, for policy {}", policies.join(", ")),
        Decided::Later(reason) => format!("not yet: {reason:?}"),
    };
    format!("{} {decided}", decision.call.call_id)
}

fn ask_detail(ask: &AskSpan, end: Option<i64>) -> String {
    let by = ask.by().join(", ");
    let answer = match (ask.answered(), end) {
        (Some(word), _) if by.is_empty() => word.to_owned(),
        (Some(word), _) => format!("{word} by {by}"),
        (None, Some(_)) => "nobody answered".into(),
        (None, None) => "nobody has answered".into(),
    };
    format!("{} {}: {answer}", ask.call.call_id, ask.name)
}

fn call_detail(call: &CallSpan) -> String {
    let attempt = if call.call.attempt > 1 { format!(", attempt {}", call.call.attempt) } else { String::new() };
    format!("{}{attempt} {}", call.call.call_id, journal::outcome(call.outcome))
}

fn sums(totals: &Totals) -> Vec<String> {
    let failed = match totals.failed_model_requests {
        0 => String::new(),
        failed => format!(", {} failed", count(failed, "request")),
    };
    let (steps, calls) = (count(totals.steps, "step"), count(totals.calls, "call"));
    let (asked, epochs) = (count(totals.asked, "time"), count(totals.epochs, "epoch"));
    let usage = &totals.usage;
    let cached = usage.cached_input_tokens.map(|cached| format!(" ({cached} from a cache)")).unwrap_or_default();
    let known = |tokens: Option<u64>| tokens.map_or_else(|| "unknown".to_owned(), |tokens| tokens.to_string());
    let cost = totals.cost_usd_micros.map_or_else(|| "cost unknown".to_owned(), money);
    vec![
        format!("models  {steps} in {}{failed}", duration(totals.model_milliseconds)),
        format!("tools   {calls} in {}, {} denied", duration(totals.call_milliseconds), totals.denied),
        format!("people  asked {asked}, for {}", duration(totals.asked_milliseconds)),
        format!("pods    {epochs}, {} without a pod", duration(totals.rest_milliseconds)),
        format!("tokens  {} in{cached}, {} out; {cost}", known(usage.input_tokens), known(usage.output_tokens)),
    ]
}

fn count(number: u32, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

pub(super) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (hours, minutes, seconds) {
        (24.., _, _) => format!("{}d{:02}h", hours / 24, hours % 24),
        (1.., _, _) => format!("{hours}h{:02}m", minutes % 60),
        (0, 1.., _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, 0, 1..) => format!("{seconds}.{}s", milliseconds % 1000 / 100),
        (0, 0, 0) => format!("{milliseconds}ms"),
    }
}

/// To the micro-dollar, without zeros that say nothing.
pub(super) fn money(micros: u64) -> String {
    let text = format!("${}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let short = text.trim_end_matches('0');
    // Cents stay.
    let cents = text.find('.').map_or(text.len(), |point| point + 3);
    text.get(..short.len().max(cents)).unwrap_or(&text).to_owned()
}
