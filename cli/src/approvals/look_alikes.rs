//! Words that read like others: letters of several scripts in one word, foreign letters that all look Latin, and the
//! same letters in other bytes. Latin letters and digits among themselves (l and 1, O and 0) are not looked at.

use std::collections::BTreeSet;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{is_nfc, is_nfkc};
use unicode_security::MixedScript as _;
use unicode_security::confusable_detection::skeleton;

/// More words than these are counted and not named.
const NAMED_MAX: usize = 12;

/// A line for each word in `texts` that is not what it looks like.
pub fn look_alikes<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let words: BTreeSet<&str> = texts.into_iter().flat_map(words).filter(|word| !word.is_ascii()).collect();
    let odd: Vec<String> = words.into_iter().filter_map(odd).collect();
    let more = odd.len().saturating_sub(NAMED_MAX);
    let rest = (more > 0).then(|| format!("{more} more such words"));
    odd.into_iter().take(NAMED_MAX).chain(rest).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && !is_combining_mark(c)).filter(|word| !word.is_empty())
}

fn odd(word: &str) -> Option<String> {
    let (reads, spelled) = (reads_like(word), spelled(word));
    if !word.is_single_script() {
        return Some(format!("{word} mixes scripts: it is spelled {spelled}, and reads like {reads}"));
    }
    if reads.is_ascii() {
        return Some(format!("{word} is spelled {spelled}, and reads like {reads}"));
    }
    let twin = !is_nfc(word) || !is_nfkc(word);
    twin.then(|| format!("{word} has a twin in other bytes: it is spelled {spelled}"))
}

/// Each foreign letter replaced by the one that it looks like.
fn reads_like(word: &str) -> String {
    let mut reads = String::with_capacity(word.len());
    for c in word.chars() {
        if c.is_ascii() { reads.push(c) } else { reads.extend(skeleton(c.encode_utf8(&mut [0; 4]))) }
    }
    reads
}

fn spelled(word: &str) -> String {
    let mut spelled = String::with_capacity(word.len());
    for c in word.chars() {
        if c.is_ascii() { spelled.push(c) } else { spelled.extend(c.escape_unicode()) }
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_letter_in_a_word_is_named() {
        assert_eq!(
            look_alikes([r#"{"to":"p\u0430y","account":"pаypal_total"}"#]),
            ["pаypal mixes scripts: it is spelled p\\u{430}ypal, and reads like paypal"]
        );
    }

    #[test]
    fn foreign_letters_that_all_look_latin_are_named() {
        assert_eq!(
            look_alikes(["rm -rf сору"]),
            ["сору is spelled \\u{441}\\u{43e}\\u{440}\\u{443}, and reads like copy"]
        );
        assert_eq!(look_alikes(["the ﬁle"]), ["ﬁle is spelled \\u{fb01}le, and reads like file"]);
    }

    #[test]
    fn the_same_letters_in_other_bytes_are_named() {
        assert_eq!(look_alikes(["re\u{301}sume\u{301}"]).len(), 1);
        assert_eq!(look_alikes(["résumé"]), [] as [&str; 0]);
    }

    #[test]
    fn what_people_write_is_not_flagged() {
        let plain =
            ["plain", "ünïcode naïve Straße", "удалить ветку", "日本語のテキスト", "한국어", "北京2026", "東京タワー"];
        assert_eq!(look_alikes(plain), [] as [&str; 0]);
    }

    #[test]
    fn many_odd_words_are_counted_rather_than_named() {
        let text: Vec<String> = ('a'..='z').map(|c| format!("а{c}")).collect();
        let lines = look_alikes([text.join(" ").as_str()]);
        assert_eq!(lines.len(), NAMED_MAX + 1);
        assert!(lines.last().is_some_and(|last| last.ends_with("more such words")), "{lines:?}");
    }
}
