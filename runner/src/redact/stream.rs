//! Redacts what arrives in pieces, cut anywhere: holds back no more than what may become a value. Pure.

use std::sync::Arc;

use super::find::{Finder, Found};

/// A text in pieces.
pub struct Streamed {
    finder: Arc<Finder>,
    /// What may be the beginning of a value.
    held: Vec<u8>,
    /// So many of these bytes belong to a value for which a marker stands already.
    covered: usize,
}

/// What the end of a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// There was no more.
    IsAll,
    /// There was more: what may be the beginning of a value is one.
    WasCut,
}

/// What is done where the text ends within what may become a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtBegun {
    Hold,
    Show,
    Drop,
}

impl Streamed {
    #[must_use]
    pub fn new(finder: Arc<Finder>) -> Self {
        Self { finder, held: Vec::new(), covered: 0 }
    }

    /// Takes the next piece; what comes back may be shown.
    #[must_use]
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        self.advance(AtBegun::Hold)
    }

    /// What was held back, as far as it may be shown.
    #[must_use]
    pub fn finish(mut self, rest: Rest) -> Vec<u8> {
        self.advance(match rest {
            Rest::IsAll => AtBegun::Show,
            Rest::WasCut => AtBegun::Drop,
        })
    }

    fn advance(&mut self, at_begun: AtBegun) -> Vec<u8> {
        let mut shown = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while let Some(byte) = self.held.get(at) {
            let found = match at_begun {
                AtBegun::Show => self.finder.whole_at(&self.held, at),
                AtBegun::Hold | AtBegun::Drop => self.finder.at(&self.held, at),
            };
            match found {
                Found::Begun if at_begun == AtBegun::Hold => break,
                // Whatever follows belongs to it.
                Found::Begun => {
                    at = self.held.len();
                    break;
                }
                Found::Value { name, end } => {
                    if at >= self.covered {
                        shown.extend_from_slice(super::marker(name).as_bytes());
                    }
                    // Values may overlap: where they do, nothing between them is shown.
                    self.covered = self.covered.max(end);
                }
                Found::Nothing if at >= self.covered => shown.push(*byte),
                Found::Nothing => {}
            }
            at += 1;
        }
        self.held.drain(..at);
        self.covered = self.covered.saturating_sub(at);
        shown
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::credential::Secret;
    use crate::redact::Named;

    const TEXT: &str = "{\"hunter2\":\"a hunt\\u0065r2 %68unter2 %\",\"b\":\"eDpodW50ZXIy\"} h&#117;nter2 %25%2568unter2 ter hunter2hunter2 hunter \\";

    fn finder() -> Arc<Finder> {
        let value = |name: &str, value: &str| Named { name: name.into(), secret: Secret::new(value.as_bytes()) };
        Arc::new(Finder::new(&[value("a", "hunter2"), value("b", "2hunt")]))
    }

    #[test]
    fn a_text_is_redacted_the_same_wherever_it_is_cut() {
        let finder = finder();
        let expected = finder.replaced(TEXT).into_owned();
        assert_eq!(expected.matches("[credential a redacted]").count(), 7, "{expected}");
        assert!(!expected.contains("unt\\u0065r2") && expected.ends_with(" hunter \\"), "{expected}");
        let bytes = TEXT.as_bytes();
        let in_pieces = |pieces: &[&[u8]]| {
            let mut stream = Streamed::new(Arc::clone(&finder));
            let mut shown: Vec<u8> = pieces.iter().flat_map(|piece| stream.push(piece)).collect();
            shown.extend(stream.finish(Rest::IsAll));
            String::from_utf8(shown).unwrap()
        };
        for cut in 0..=bytes.len() {
            assert_eq!(in_pieces(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        assert_eq!(in_pieces(&bytes.chunks(1).collect::<Vec<_>>()), expected, "byte by byte");
    }

    #[test]
    fn no_more_is_held_back_than_may_become_a_value() {
        let mut stream = Streamed::new(finder());
        for _piece in 0..1000 {
            let _shown = stream.push(b"hunter hunte hunt ");
            assert!(stream.held.len() < 7, "{}", stream.held.len());
        }
    }
}
