//! Ids that need no memory: made of what the journal holds.

use std::fmt;

use crate::digest::Digest;

/// The run's uid without its dashes, so that a trace is found by the AgentRun and the other way round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// A uid that is no UUID is hashed: to Kubernetes it is just a string.
    #[must_use]
    pub fn of(run_uid: &str) -> Self {
        Self(uuid(run_uid).unwrap_or_else(|| head(&Digest::of(run_uid.as_bytes()))))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SpanId {
    /// The span of this kind that the run's record `seq` began.
    #[must_use]
    pub fn of(run_uid: &str, kind: &str, seq: u64) -> Self {
        Self(head(&Digest::of(format!("span\n{run_uid}\n{kind}\n{seq}").as_bytes())))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// 32 hexadecimal digits and dashes, and not nothing but zeros: that is no id.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let all_hex = digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok().filter(|number| all_hex && *number != 0)?;
    Some(number.to_be_bytes())
}

fn head<const N: usize>(digest: &Digest) -> [u8; N] {
    let mut head = [0; N];
    head.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    head
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_named_by_the_runs_uid() {
        let id = TraceId::of("3f2a9c1e-0b6d-4c7e-9a51-7d2f60c4e8ab");
        assert_eq!(id.to_string(), "3f2a9c1e0b6d4c7e9a517d2f60c4e8ab");
        let hashed = TraceId::of("run-uid");
        assert_eq!((hashed.to_string().len(), hashed), (32, TraceId::of("run-uid")));
        assert_ne!(TraceId::of("00000000-0000-0000-0000-000000000000").as_bytes(), [0; 16]);
        assert_ne!(TraceId::of("+f2a9c1e0b6d4c7e9a517d2f60c4e8ab"), TraceId::of("0f2a9c1e0b6d4c7e9a517d2f60c4e8ab"));
    }

    #[test]
    fn a_span_is_named_by_run_kind_and_record() {
        let id = SpanId::of("a", "epoch", 1);
        assert_eq!((id, id.to_string().len()), (SpanId::of("a", "epoch", 1), 16));
        for other in [SpanId::of("b", "epoch", 1), SpanId::of("a", "pod", 1), SpanId::of("a", "epoch", 2)] {
            assert_ne!(id, other);
        }
    }
}
