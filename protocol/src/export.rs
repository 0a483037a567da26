//! A run's journal as a file of lines, and its verification without cluster or key. Pure: bytes in, verdict out.
//!
//! # Format
//! A header line, one line a record with its hash, and a last line with the head and a digest over every byte
//! before it. Lines end in `\n`. The record is stored as it was hashed, byte by byte.

mod effects;
mod fault;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use self::effects::Effects;
pub use self::effects::{Effect, EffectOutcome, GrantedBy, PermittedBy, Settled};
pub use self::fault::{Fault, Place, Wrong};
use crate::call::CallBinding;
use crate::chain::{Head, SealedRecord};
use crate::digest::{Digest, digest_of};
use crate::elicitation::Inputs;
use crate::event::{Event, ProposedCall, Record, Verdict};
use crate::fold::RunState;
use crate::plan::ObjectId;

/// Version of the format that this build writes and reads.
pub const EXPORT_VERSION: u32 = 1;
/// How a last line begins, and no record's.
const END: &[u8] = b"{\"end\":";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    pub belay_journal_export: u32,
    /// Id of the journal that held the run.
    pub journal: String,
    pub run: ObjectId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine<'a> {
    hash: Digest,
    #[serde(borrow)]
    record: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    end: End,
    /// Over every byte of the lines before.
    digest: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    seq: u64,
    hash: Digest,
}

/// An export that holds together.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    pub header: Header,
    /// Compare it with the AgentRun's status: the file alone cannot tell that all of it was written anew.
    pub head: Head,
    pub state: Arc<RunState>,
    pub effects: Vec<Effect>,
}

/// The file of these records, which are all of the run's.
#[must_use]
pub fn write(journal: &str, run: &ObjectId, records: &[SealedRecord]) -> Vec<u8> {
    let header = Header { belay_journal_export: EXPORT_VERSION, journal: journal.to_owned(), run: run.clone() };
    let mut file = line(&header);
    for sealed in records {
        file.extend_from_slice(format!("{{\"hash\":\"{}\",\"record\":", sealed.hash).as_bytes());
        file.extend_from_slice(&sealed.bytes);
        file.extend_from_slice(b"}\n");
    }
    let head = records.last().map_or_else(Head::empty, SealedRecord::head);
    let end = EndLine { end: End { seq: head.seq, hash: head.hash }, digest: Digest::of(&file) };
    file.extend_from_slice(&line(&end));
    file
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Strings and numbers under fixed names: there is nothing in it that JSON does not take.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Checks a whole file: form, sequence, hash chain, the order of events, digests of plan and calls, and its end.
///
/// # Errors
/// The first line that is wrong, and what that means.
pub fn verify(file: &[u8]) -> Result<Verified, Fault> {
    verify_each(file, |_| {})
}

/// As [`verify`], and hands over each record that holds together with those before it.
///
/// # Errors
/// Likewise; then what was handed over is only a part.
pub fn verify_each(file: &[u8], mut each: impl FnMut(&Record)) -> Result<Verified, Fault> {
    let mut lines = Lines { rest: file, number: 0 };
    let header = header(lines.next())?;
    let mut reader = Reader::new(header);
    loop {
        let before = file.len() - lines.rest.len();
        let next = lines.next();
        let place = Place { line: lines.number, run: Some(reader.header.run.clone()), seq: None };
        let Some(line) = next else {
            return Err(place.fault(Wrong::Truncated { records: reader.head.seq }));
        };
        if line.starts_with(END) {
            let checked = reader.check_end(line, file.get(..before).unwrap_or_default());
            let nothing_more = if lines.rest.is_empty() { Ok(()) } else { Err(Wrong::AfterEnd) };
            return checked.and(nothing_more).map(|()| reader.finish()).map_err(|wrong| place.fault(wrong));
        }
        let place = Place { seq: Some(reader.head.seq + 1), ..place };
        let record = reader.take(line).map_err(|wrong| place.fault(wrong))?;
        each(&record);
    }
}

/// Lines that end in a line feed; what does not is no line.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        self.number += 1;
        let length = self.rest.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest.get(1..).unwrap_or_default();
        Some(line)
    }
}

fn header(line: Option<&[u8]>) -> Result<Header, Fault> {
    let place = Place { line: 1, run: None, seq: None };
    let line = line.ok_or_else(|| place.clone().fault(Wrong::Truncated { records: 0 }))?;
    let header: Header = serde_json::from_slice(line).map_err(|e| place.clone().fault(Wrong::Header(e.to_string())))?;
    if header.belay_journal_export == EXPORT_VERSION {
        Ok(header)
    } else {
        Err(place.fault(Wrong::Version { found: header.belay_journal_export }))
    }
}

/// What the lines so far add up to.
struct Reader {
    header: Header,
    head: Head,
    state: RunState,
    proposals: BTreeMap<String, ProposedCall>,
    effects: Effects,
}

impl Reader {
    fn new(header: Header) -> Self {
        let (state, proposals, effects) = Default::default();
        Self { header, head: Head::empty(), state, proposals, effects }
    }

    fn take(&mut self, line: &[u8]) -> Result<Record, Wrong> {
        let line: RecordLine<'_> = serde_json::from_slice(line).map_err(|e| Wrong::Line(e.to_string()))?;
        let bytes = line.record.get().as_bytes();
        self.refuse_gap(bytes)?;
        let sealed = self.head.open(bytes, Some(line.hash))?;
        match &sealed.record.event {
            Event::RunAccepted { plan, plan_digest } => {
                if plan.run != self.header.run {
                    return Err(Wrong::OtherRun { found: plan.run.clone() });
                }
                check_plan(bytes, *plan_digest)?;
            }
            Event::CallProposed { call_id, call, .. } => {
                self.proposals.insert(call_id.clone(), call.clone());
            }
            Event::CallDecided { call_id, verdict: Verdict::Allowed { digest }, .. } => {
                self.check_call(call_id, *digest)?;
            }
            _ => {} // no other event holds a digest that can be taken again
        }
        self.state.apply(&sealed.record)?;
        self.effects.take(&sealed.record);
        self.head = sealed.head();
        Ok(sealed.record)
    }

    /// Before the hash: a line that was taken out is worth its own words.
    fn refuse_gap(&self, bytes: &[u8]) -> Result<(), Wrong> {
        #[derive(Deserialize)]
        struct Numbered {
            seq: u64,
        }
        let expected = self.head.seq + 1;
        match serde_json::from_slice::<Numbered>(bytes) {
            Ok(Numbered { seq }) if seq != expected => Err(Wrong::Gap { expected, found: seq }),
            // One without a number has no record's form, which the chain says next.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether a permit is for what the plan would send.
    fn check_call(&self, call_id: &str, permitted: Digest) -> Result<(), Wrong> {
        let plan = self.state.plan.as_ref();
        let call = self.proposals.get(call_id);
        let Some((plan, call)) = plan.zip(call) else { return Ok(()) }; // the fold refuses that
        let tool = plan.tool(&call.tool).filter(|tool| tool.operation(&call.operation).is_some());
        let Some(tool) = tool else {
            let operation = format!("{}/{}", call.tool, call.operation);
            return Err(Wrong::NotInPlan { call_id: call_id.to_owned(), operation });
        };
        let inputs = self.state.inputs.get(call_id).map(Inputs::digest).transpose()?.flatten();
        let binding = CallBinding::new(plan, tool, call.definition, &call.operation, &call.args);
        let computed = CallBinding { inputs, ..binding }.digest()?;
        if computed == permitted {
            Ok(())
        } else {
            Err(Wrong::CallDigest { call_id: call_id.to_owned(), stated: permitted, computed })
        }
    }

    fn check_end(&self, line: &[u8], before: &[u8]) -> Result<(), Wrong> {
        let line: EndLine = serde_json::from_slice(line).map_err(|e| Wrong::Line(e.to_string()))?;
        let found = End { seq: self.head.seq, hash: self.head.hash };
        if line.end != found {
            return Err(Wrong::Head { stated: line.end.seq, found: found.seq });
        }
        if found.seq == 0 {
            return Err(Wrong::Empty);
        }
        if line.digest == Digest::of(before) { Ok(()) } else { Err(Wrong::FileDigest) }
    }

    fn finish(self) -> Verified {
        Verified {
            header: self.header,
            head: self.head,
            state: Arc::new(self.state),
            effects: self.effects.into_rows(),
        }
    }
}

/// Over what was recorded, not over what this build makes of it: a later plan may have fields unknown here.
fn check_plan(bytes: &[u8], stated: Digest) -> Result<(), Wrong> {
    let record: Value = serde_json::from_slice(bytes).map_err(|e| Wrong::Line(e.to_string()))?;
    let computed = digest_of(record.pointer("/event/plan").unwrap_or(&Value::Null))?;
    if computed == stated { Ok(()) } else { Err(Wrong::PlanDigest { stated, computed }) }
}
