//! Looks for pieces of secrets in files, however they are encoded. grep does it: it takes thousands of words over hundreds of
//! megabytes at once, and is given them on its stdin, so that they stand on no command line.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::json;

/// No piece of a secret of so many bytes may show.
const PIECE: usize = 10;

/// A word that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub offset: u64,
    pub word: String,
}

/// Every piece of every value, as it is and in the forms that are promised, a line each.
pub fn pieces(values: &[String]) -> String {
    let pieces = values.iter().flat_map(|value| value.as_bytes().windows(PIECE)).map(String::from_utf8_lossy);
    let words: BTreeSet<String> = pieces.flat_map(|piece| forms(&piece)).collect();
    words.into_iter().fold(String::new(), |mut lines, word| {
        let _ = writeln!(lines, "{word}");
        lines
    })
}

fn forms(piece: &str) -> Vec<String> {
    let each = |write: fn(u8) -> String| piece.bytes().map(write).collect::<String>();
    let mut forms = vec![
        piece.to_owned(),
        json!(piece).to_string().trim_matches('"').to_owned(),
        // As Go writes JSON.
        json!(piece).to_string().trim_matches('"').replace('&', "\\u0026"),
        each(|byte| format!("%{byte:02X}")),
        each(|byte| format!("%{byte:02x}")),
        each(|byte| format!("\\u{byte:04x}")),
    ];
    for before in 0..3 {
        // Only what the piece alone decides: whatever stands around it in the same base64.
        let whole = [&b"xy"[..before], piece.as_bytes()].concat();
        let decided = (before * 8).div_ceil(6)..whole.len() * 8 / 6;
        forms.extend([&STANDARD, &URL_SAFE].map(|base64| base64.encode(&whole)[decided.clone()].to_owned()));
    }
    forms
}

/// Where the words, a line each, stand in the file. None overlaps another.
pub fn find(words: &str, file: &Path) -> Result<Vec<Hit>> {
    let mut grep = Command::new("grep")
        .args(["--text", "--only-matching", "--byte-offset", "--fixed-strings", "--file=-", "--"])
        .arg(file)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("grep cannot be started")?;
    let mut stdin = grep.stdin.take().context("grep without stdin")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(words.as_bytes()));
        grep.wait_with_output()
    })?;
    // 1: nothing was found.
    let ended = output.status.code();
    ensure!(matches!(ended, Some(0 | 1)), "grep in {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let hits = lines.lines().filter_map(|line| {
        let (offset, word) = line.split_once(':')?;
        Some(Hit { offset: offset.parse().ok()?, word: word.to_owned() })
    });
    Ok(hits.collect())
}
