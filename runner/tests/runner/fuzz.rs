//! A short pass over what `make fuzz` does for long: the same entries, inputs that one seed makes.

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::codecs::recorded;

#[path = "../../fuzz/entry.rs"]
mod entry;

const ROUNDS: usize = 300;
/// More of an input teaches nothing and takes long without optimization.
const BYTES_MAX: usize = 6000;

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The streams and the committed corpus of a target.
fn seeds(target: &str, formats: &[&str]) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        formats.iter().flat_map(|format| recorded(format)).map(|stream| stream.bytes).collect();
    let corpus = std::fs::read_dir(fuzz_folder().join("corpus").join(target)).expect("the corpus is committed");
    let mut paths: Vec<PathBuf> = corpus.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    seeds.extend(paths.iter().map(|path| std::fs::read(path).unwrap()));
    seeds
}

/// The words of libFuzzer's dictionary, without their rare escapes.
fn words() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(fuzz_folder().join("dictionary")).unwrap();
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| word.replace("\\x0a", "\n").replace("\\\"", "\"").into_bytes()).collect()
}

/// One seed with a few things done to it.
fn mutated(seeds: &[Vec<u8>], words: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seeds.choose(rng).unwrap().clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len().min(at + 200));
        match rng.random_range(0..6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            2 => drop(bytes.splice(at..at, words.choose(rng).unwrap().iter().copied())),
            3 => bytes.truncate(at),
            4 => {
                let other = seeds.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    bytes.insert(0, rng.random());
    bytes.truncate(BYTES_MAX);
    bytes
}

fn pass(target: &str, formats: &[&str], entry: fn(&[u8])) {
    let (seeds, words) = (seeds(target, formats), words());
    assert!(words.len() > 20);
    let mut rng = StdRng::seed_from_u64(7);
    for seed in &seeds {
        entry(seed);
    }
    for _ in 0..ROUNDS {
        entry(&mutated(&seeds, &words, &mut rng));
    }
}

#[test]
fn no_bytes_confuse_the_event_stream_parser() {
    pass("sse", &["chat", "responses", "messages"], entry::sse);
}

#[test]
fn no_bytes_confuse_the_chat_completions_codec() {
    pass("chat", &["chat"], entry::chat);
}

#[test]
fn no_bytes_confuse_the_responses_codec() {
    pass("responses", &["responses"], entry::responses);
}

#[test]
fn no_bytes_confuse_the_messages_codec() {
    pass("messages", &["messages"], entry::messages);
}
