//! What a Tool's server offers otherwise than it was accepted, from the very bytes that a decision signs.

use belay_crds::drift::{Offer, OfferedChange};
use belay_crds::{Change, visible};

use super::arguments::{Detail, Shown, rows};

/// More lines of one operation are counted and not shown.
const LINES_MAX: usize = 60;

/// One operation after the other. What cannot be read as an offer is shown as what it is.
pub fn shown(arguments: &str, detail: Detail) -> Shown {
    let Ok(offer) = serde_json::from_str::<Offer>(arguments) else {
        return super::arguments::shown(&rows(arguments), detail);
    };
    let mut shown = Shown { lines: Vec::new(), folded_bytes: 0 };
    for operation in &offer.operations {
        shown.lines.push(format!("{} {}", visible(&operation.name), word(operation)));
        let mut lines = operation.diff();
        let most = match detail {
            Detail::Folded => LINES_MAX,
            Detail::Full => lines.len(),
        };
        let rest = lines.split_off(lines.len().min(most));
        shown.lines.extend(lines.into_iter().map(|line| format!("  {line}")));
        if !rest.is_empty() {
            shown.lines.push(format!("  [.. {} more lines of this operation: --full shows them ..]", rest.len()));
            shown.folded_bytes += rest.iter().map(String::len).sum::<usize>();
        }
    }
    shown
}

fn word(operation: &OfferedChange) -> &'static str {
    match operation.change {
        Change::Changed => "changed",
        Change::Removed => "was removed",
        Change::Added => "was added",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_differences_are_folded_and_never_silently() {
        let lines: Vec<String> = (0..100).map(|line| format!("line {line}")).collect();
        let description = lines.join("\n");
        let offered = json!({"digest": "d", "description": description, "inputSchema": "{}"});
        let arguments = json!({"operations": [{"name": "o", "change": "Added", "offered": offered}]}).to_string();
        let folded = shown(&arguments, Detail::Folded);
        assert!(folded.folded_bytes > 0 && folded.lines.len() == LINES_MAX + 2, "{:?}", folded.lines);
        let full = shown(&arguments, Detail::Full);
        assert!(full.folded_bytes == 0 && full.lines.iter().any(|line| line.contains("line 99")));
        assert!(!shown("not JSON", Detail::Full).lines.is_empty());
    }
}
