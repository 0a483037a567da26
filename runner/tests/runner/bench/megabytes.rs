//! What a megabyte of an answer costs: read through the guard of the way out or through a bare client, and redacted in the
//! pieces it comes in. `e2e/bench/run megabytes` prints it.

use std::time::Duration;

use belay_protocol::plan::PlanCredential;
use belay_runner::egress::Destinations;
use belay_runner::redact::{Redactor, Rest};

use super::{Used, asked_for, cpu_seconds, measured, peak_kilobytes, say};
use crate::http::{Server, reply};
use crate::plans::{credential, mounted};

const MEGABYTE: usize = 1 << 20;
/// The most that is read of one answer.
const ANSWER_BYTES: usize = 8 * MEGABYTE;
/// So many of them are read, and redacted.
const READ: usize = 128;
const REDACTED: usize = 4;
/// As a connection gives them.
const PIECE_BYTES: usize = 16 * 1024;
const TEXTS: [Text; 4] = [Text::Prose, Text::Json, Text::Escaped, Text::Near];

/// What is redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Prose,
    /// Lines of JSON.
    Json,
    /// As it stands in URLs, in HTML and in JSON within JSON.
    Escaped,
    /// Words that are values without their last character, and every eighth a whole value.
    Near,
}

/// The same numbers every time.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % end
    }
}

impl Text {
    fn of(word: &str) -> Self {
        TEXTS.into_iter().find(|text| format!("{text:?}") == word).unwrap()
    }

    fn written(self, values: &[(String, String)]) -> String {
        let words = ["the", "model", "asked", "what", "nobody", "had", "said", "of", "it", "before"];
        let mut numbers = Numbers(1);
        let mut text = String::with_capacity(ANSWER_BYTES + 256);
        while text.len() < ANSWER_BYTES {
            let (word, other) = (words[numbers.below(words.len())], words[numbers.below(words.len())]);
            let piece = match self {
                Self::Prose => format!("{word} "),
                Self::Json => format!("{{\"name\":\"{word}\",\"text\":\"{other} {word}\\n{other}\"}}\n"),
                Self::Escaped => format!("%22{word}%2F{other}%22&quot;{word}&quot;\\\\\\\"\\u00e9{other}\\\\n"),
                Self::Near => {
                    let (_, value) = &values[numbers.below(values.len())];
                    let whole = numbers.below(8) == 0;
                    format!("{} ", &value[..value.len() - usize::from(!whole)])
                }
            };
            text.push_str(&piece);
        }
        text.truncate(ANSWER_BYTES);
        text
    }
}

/// Keys as providers give them.
fn values(count: usize) -> Vec<(String, String)> {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut numbers = Numbers(2);
    let mut value = || (0..40).map(|_| char::from(SIGNS[numbers.below(SIGNS.len())])).collect();
    (0..count).map(|number| (format!("key-{number}"), value())).collect()
}

fn bare() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let builder = builder.retry(reqwest::retry::never()).referer(false).user_agent("belay-runner/bare");
    let builder = builder.connect_timeout(Duration::from_secs(5)).pool_idle_timeout(Duration::from_secs(4));
    builder.pool_max_idle_per_host(2).tls_certs_only([]).build().unwrap()
}

async fn read(client: &reqwest::Client, url: &str) -> usize {
    let mut response = client.get(url).send().await.unwrap();
    let mut read = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        read += chunk.len();
    }
    read
}

/// Answers that are read one after the other: through which client, and where.
#[tokio::test]
#[ignore = "a part of e2e/bench/run megabytes"]
async fn one_reader() {
    let Some(what) = asked_for() else { return };
    let [way, url] = &what[..] else { panic!("{what:?}") };
    let guarded = Destinations::new("team", &["127.0.0.1".into()]);
    let guarded = guarded.client(url, Duration::from_secs(5), None).unwrap();
    let bare = bare();
    let client = || if way == "guarded" { guarded.open(url).unwrap() } else { bare.clone() };
    // Connects.
    assert_eq!(read(&client(), url).await, ANSWER_BYTES);
    let before = cpu_seconds();
    for _ in 0..READ {
        assert_eq!(read(&client(), url).await, ANSWER_BYTES);
    }
    say(&Used { cpu_seconds: cpu_seconds() - before, peak_kilobytes: peak_kilobytes() });
}

/// So many bytes are left of it.
fn in_pieces(redactor: &Redactor, text: &str) -> usize {
    let mut stream = redactor.stream();
    let shown: usize = text.as_bytes().chunks(PIECE_BYTES).map(|piece| stream.push(piece).len()).sum();
    shown + stream.finish(Rest::IsAll).len()
}

/// An answer that is redacted in pieces, or whole as results of tools are: of which text, and with how many Credentials. Its
/// peak is by how much that grew.
#[test]
#[ignore = "a part of e2e/bench/run megabytes"]
fn one_redaction() {
    let Some(what) = asked_for() else { return };
    let [way, text, count] = &what[..] else { panic!("{what:?}") };
    let values = values(count.parse().unwrap());
    let text = Text::of(text).written(&values);
    let mounting: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (_folder, credentials) = mounted(&mounting);
    let named = |(name, _): &(String, String)| PlanCredential { name: name.clone(), ..credential(&["127.0.0.1"]) };
    let redactor = Redactor::new(credentials, &values.iter().map(named).collect::<Vec<_>>());
    // What is looked for is prepared once in a run.
    assert!(redactor.is_clean(""));
    let (peak, before) = (peak_kilobytes(), cpu_seconds());
    for _ in 0..REDACTED {
        let shown = if way == "whole" { redactor.redact(&text).len() } else { in_pieces(&redactor, &text) };
        assert!(shown > 0);
    }
    let used = Used { cpu_seconds: cpu_seconds() - before, peak_kilobytes: peak_kilobytes() - peak };
    assert_eq!(redactor.is_clean(&text), !text.contains(mounting[0].1));
    say(&used);
}

/// As `docs/bench.md` has it: milliseconds and megabytes a second.
fn cost(used: &Used, bytes: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "far fewer bytes than a float counts")]
    let megabytes = bytes as f64 / 1e6;
    let (milliseconds, rate) = (used.cpu_seconds * 1e3 / megabytes, megabytes / used.cpu_seconds);
    format!("{milliseconds:>8.2} ms   {rate:>7.0} MB/s   {:>6} kB", used.peak_kilobytes)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "e2e/bench/run megabytes"]
async fn what_a_megabyte_costs() {
    let server = Server::start(vec![reply(200, "text/plain", Text::Prose.written(&[]))]).await;
    println!("read through    CPU a MB    MB a CPU second   peak");
    for way in ["bare", "guarded"] {
        let what = [way, &server.url("/")];
        let used = tokio::task::block_in_place(|| measured("bench::megabytes::one_reader", &what));
        println!("{way:<12} {}", cost(&used, READ * ANSWER_BYTES));
    }
    println!("\nredacted   Credentials   in pieces: CPU a MB   MB a CPU second   growth   whole: the same");
    for (text, count) in TEXTS.into_iter().flat_map(|text| ["1", "10", "50"].map(|count| (format!("{text:?}"), count)))
    {
        let [pieces, whole] = ["pieces", "whole"].map(|way| {
            let used = measured("bench::megabytes::one_redaction", &[way, &text, count]);
            cost(&used, REDACTED * ANSWER_BYTES)
        });
        println!("{text:<10} {count:>11}   {pieces}   {whole}");
    }
}
