//! The canonical bytes beside those of an implementation in another language, the Python package `rfc8785`, over
//! thousands of texts: spelled in every way, read by each side's own parser. `make graders` runs this.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use belay_protocol::digest::canonical;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// Random texts, beside the listed ones.
const TEXTS: usize = 4000;
const NUMBERS_IN_A_TEXT: usize = 64;

/// What ours makes of a JSON text: hexadecimal digits, or none where it has no canonical form.
fn ours(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let bytes = canonical(&value).ok()?;
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// What theirs makes of each, in the same form.
fn theirs(texts: &[String]) -> Vec<Option<String>> {
    let python = PathBuf::from(std::env::var_os("BELAY_GRADERS").expect("run this with `make graders`"));
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/graders/canonical.py");
    let mut command = Command::new(python.join("bin/python"));
    let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = texts.join("\n");
    let writer = std::thread::spawn(move || writeln!(stdin, "{lines}").unwrap());
    let answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let answers = answers.map(|line| line.unwrap().strip_prefix("bytes ").map(str::to_owned)).collect();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    answers
}

/// Doubles of every exponent, either sign, with the least, the greatest and two other fractions each.
fn doubles() -> Vec<String> {
    let fractions = [0, 1, 0x0005_5555_5555_5555, 0x000b_ee1e_c0de_0001, (1 << 52) - 1];
    let bits = (0..2047_u64).flat_map(|exponent| fractions.map(|fraction| exponent << 52 | fraction));
    let all = bits.flat_map(|bits| [bits, bits | 1 << 63]).map(f64::from_bits);
    // `{:?}` comes to the same double again, which the texts of both sides depend on.
    all.map(|double| format!("{double:?}")).collect()
}

/// Where the form of a number changes.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-0.0",
    "0e9",
    "1",
    "1.0",
    "1e0",
    "10e-1",
    "0.1e1",
    "1.50",
    "-1E+2",
    "1e20",
    "1e21",
    "1.0e22",
    "999999999999999900000.0",
    "1e-6",
    "1e-7",
    "0.000001",
    "0.0000001",
    "123456789012345680000.0",
    "333333333.33333329",
    "4.50",
    "2e-3",
    "5e-324",
    "2.2250738585072014e-308",
    "1.7976931348623157e308",
    "9007199254740991",
    "-9007199254740991",
    "9007199254740992.0",
    "9007199254740993.0",
    "9007199254740994.0",
    "0.1",
    "0.30000000000000004",
    "295147905179352830000.0",
    "1424953923781206.2",
    "1e23",
    "9.5e-7",
    "4.9e-320",
];

/// What has no canonical form that would be no other's.
const REFUSED: &[&str] =
    &["9007199254740993", "-9007199254740993", "18446744073709551615", "1e309", r#""\ud83d""#, r#""\ude00\ud83d""#];

/// Every character that is written in a way of its own, and some that look as if they were.
fn strings() -> Vec<String> {
    let low = (0..0x30_u32).chain([0x7f, 0x80, 0xa0, 0xad, 0x2028, 0x2029, 0xd7ff, 0xe000, 0xfeff, 0xfffd, 0xffff]);
    let escaped = low.map(|code| format!("\"a\\u{code:04X}b\""));
    let mut all: Vec<String> = escaped.collect();
    let more =
        [r#""\b\t\n\f\r\"\\\/""#, r#""\ud83d\ude00 \uDBFF\uDFFF""#, "\"caf\u{e9} cafe\u{301} \u{20ac} \u{1f600}\""];
    all.extend(more.map(str::to_owned));
    all
}

/// Objects whose names are in another order by code units than by bytes or by characters.
fn names() -> Vec<String> {
    let names = [
        "",
        "\u{1f600}",
        "\u{e000}",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{e9}",
        "e\u{301}",
        "a",
        "A",
        "aa",
        "\u{20ac}",
        "1",
        "10",
        "2",
        "\r",
        "\u{7f}",
    ];
    let object = |turn: usize| {
        let mut turned = names;
        turned.rotate_left(turn);
        let fields: Vec<String> =
            (turned.iter().enumerate()).map(|(at, name)| format!("{}: {at}", Value::from(*name))).collect();
        format!("{{{}}}", fields.join(" , "))
    };
    (0..names.len()).map(object).collect()
}

/// One character of a string: itself, or as an escape.
fn any_character() -> impl Strategy<Value = String> {
    let plain = any::<char>().prop_filter("escaped elsewhere", |it| !it.is_control() && !matches!(it, '"' | '\\'));
    let escaped = any::<char>().prop_map(|it| {
        let mut units = [0; 2];
        let escapes: Vec<String> = it.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect();
        escapes.concat()
    });
    let short = prop::sample::select(vec!["\\b", "\\t", "\\n", "\\f", "\\r", "\\\"", "\\\\", "\\/"]);
    prop_oneof![4 => plain.prop_map(String::from), 2 => escaped, 1 => short.prop_map(str::to_owned)]
}

fn any_string() -> impl Strategy<Value = String> {
    prop::collection::vec(any_character(), 0..12).prop_map(|characters| format!("\"{}\"", characters.concat()))
}

fn any_number() -> impl Strategy<Value = String> {
    let safe = (1_i64 << 53) - 1;
    let digits = "-?(0|[1-9][0-9]{0,14})\\.[0-9]{1,18}([eE][+-]?[0-9]{1,2})?";
    prop_oneof![
        (-safe..=safe).prop_map(|integer| integer.to_string()),
        any::<f64>().prop_filter("no JSON", |it| it.is_finite()).prop_map(|double| format!("{double:?}")),
        digits.prop_map(String::from),
        prop::sample::select(NUMBERS).prop_map(str::to_owned),
    ]
}

fn any_text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["null", "true", "false", "[]", "{}", " [ ] "]).prop_map(str::to_owned);
    let leaf = prop_oneof![1 => word, 4 => any_number(), 4 => any_string()];
    leaf.prop_recursive(4, 48, 8, |inner| {
        let field = (any_string(), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..8).prop_map(|items| format!("[{}]", items.join(" ,\t"))),
            // A name that comes twice is no JSON that two sides need to agree about.
            prop::collection::vec(field, 0..8).prop_map(|fields| {
                let mut taken = std::collections::BTreeSet::new();
                let once =
                    fields.into_iter().filter(|(name, _)| taken.insert(serde_json::from_str::<String>(name).ok()));
                let fields: Vec<String> = once.map(|(name, value)| format!("{name} : {value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn texts() -> Vec<String> {
    let mut all: Vec<String> = NUMBERS.iter().chain(REFUSED).map(|text| (*text).to_owned()).collect();
    all.extend(doubles().chunks(NUMBERS_IN_A_TEXT).map(|numbers| format!("[{}]", numbers.join(","))));
    all.extend(strings());
    all.extend(names());
    let (mut runner, any) = (TestRunner::deterministic(), any_text());
    all.extend((0..TEXTS).map(|_| any.new_tree(&mut runner).unwrap().current()));
    all
}

#[test]
#[ignore = "wants a Python package: make graders"]
fn canonical_bytes_are_those_of_an_implementation_in_another_language() {
    let texts = texts();
    let theirs = theirs(&texts);
    assert_eq!(theirs.len(), texts.len(), "an answer to each");
    for (text, theirs) in texts.iter().zip(&theirs) {
        assert_eq!(&ours(text), theirs, "{text}");
    }
    let refused: Vec<&str> =
        texts.iter().zip(&theirs).filter(|(_, it)| it.is_none()).map(|(text, _)| text.as_str()).collect();
    assert_eq!(refused, REFUSED);
}
