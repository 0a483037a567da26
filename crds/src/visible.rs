//! Text of models and servers for a terminal: nothing in it moves the cursor, turns around or hides.

/// Control, formatting, bidirectional and private characters, and every space but the plain one, as `\u{..}`; everything
/// else as it is.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// The same of a JSON text, by JSON's own escapes: whoever parses it reads what it read before.
#[must_use]
pub fn visible_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        // Within strings those below a space are escaped already; between them they are line ends.
        if c < ' ' || !hides(c) {
            shown.push(c);
        } else {
            shown.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    shown
}

fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{1680}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
            | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a\u{202e}": ["\u{9b}2J", "x\ny", "\u{e0041}日本", "plain \"ü\""]});
        let shown = visible_json(&serde_json::to_string_pretty(&value).unwrap_or_default());
        assert!(
            shown.contains("a\\u202e") && shown.contains("\\u009b2J") && shown.contains("\\udb40\\udc41日本"),
            "{shown}"
        );
        assert!(!shown.contains(['\u{202e}', '\u{9b}', '\u{e0041}']), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(value));
    }

    #[test]
    fn what_moves_turns_or_hides_is_spelled_out() {
        assert_eq!(visible("plain ünïcode 日本"), "plain ünïcode 日本");
        assert_eq!(visible("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(visible("rm\u{a0}-rf\u{3000}\u{f8ff}"), "rm\\u{a0}-rf\\u{3000}\\u{f8ff}");
        assert_eq!(visible("x\u{202e}y\u{200b}z\u{e0041}"), "x\\u{202e}y\\u{200b}z\\u{e0041}");
    }
}
