//! `belay artifacts RUN`: what results of a run hold besides the text that is shown, and the bytes of one. Read like an
//! export, with one's own identity.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use belay_crds::visible;
use belay_protocol::event::{Artifact, Event, ToolResult};
use belay_protocol::export::verify_each;
use belay_protocol::reading::artifact_path;
use belay_protocol::{Digest, Record};

use crate::exit::CliError;
use crate::journal::{self, Journaled};
use crate::place::Placed;
use crate::{Target, table};

/// So many digits of a digest name one for sure, among those of a run.
const DIGITS_MIN: usize = 8;

#[derive(clap::Args)]
pub struct ArtifactsArguments {
    /// Name of the AgentRun
    run: String,
    /// Print the bytes of this one: its digest as it is listed, or the first 8 or more of its hexadecimal digits
    digest: Option<String>,
    /// uid of the AgentRun, where it is gone
    #[arg(long)]
    uid: Option<String>,
    /// Where the operator is installed
    #[arg(long, default_value = "belay-system")]
    operator_namespace: String,
}

/// An artifact and the call whose result holds it.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    call_id: String,
    operation: String,
    artifact: Artifact,
}

pub async fn artifacts(target: &Target, arguments: &ArtifactsArguments) -> Result<ExitCode, CliError> {
    let (run, uid, operator_namespace) =
        (&*arguments.run, arguments.uid.as_deref(), arguments.operator_namespace.as_str());
    let journaled = Journaled { run, uid, operator_namespace };
    let export = journal::read(target, &journaled).await?;
    let mut records: Vec<Record> = Vec::new();
    let verified = verify_each(export.as_bytes(), |record| records.push(record.clone()));
    let verified = verified.map_err(|fault| CliError::Failed(format!("what the operator sent: {fault}")))?;
    let found = found(&records);
    let Some(wanted) = &arguments.digest else {
        table::print(&["CALL", "OPERATION", "TYPE", "BYTES", "DIGEST", "NAME"], found.iter().map(row).collect());
        return Ok(ExitCode::SUCCESS);
    };
    let artifact = pick(&found, wanted, target.placed(run))?;
    if std::io::stdout().is_terminal() {
        return Err(CliError::Usage(format!(
            "what a server sent may do anything to a terminal: {} artifacts {run} {wanted} > FILE",
            target.place.belay()
        )));
    }
    let path = artifact_path(&verified.header.run.uid, artifact.digest);
    let bytes = journal::fetch(target, &journaled, &path).await?;
    if Digest::of(&bytes) != artifact.digest {
        return Err(CliError::Failed(format!("what the operator sent is not {}", artifact.digest)));
    }
    let written = std::io::stdout().lock().write_all(&bytes);
    written.map_err(|e| CliError::Failed(format!("writing the artifact: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

/// In the order of the calls.
fn found(records: &[Record]) -> Vec<Found> {
    let mut operations = std::collections::BTreeMap::new();
    let mut all = Vec::new();
    for record in records {
        match &record.event {
            Event::CallProposed { call_id, call, .. } => {
                operations.insert(call_id.clone(), format!("{}/{}", call.tool, call.operation));
            }
            Event::CallObserved { call_id, result: ToolResult { artifacts, .. }, .. } => {
                let operation = operations.get(call_id).cloned().unwrap_or_default();
                all.extend(artifacts.iter().map(|artifact| Found {
                    call_id: call_id.clone(),
                    operation: operation.clone(),
                    artifact: artifact.clone(),
                }));
            }
            _ => {} // no other event names any
        }
    }
    all
}

fn row(found: &Found) -> Vec<String> {
    let Artifact { digest, bytes, media_type, name } = &found.artifact;
    vec![
        found.call_id.clone(),
        visible(&found.operation),
        visible(media_type),
        bytes.to_string(),
        digest.to_string(),
        visible(name),
    ]
}

fn pick<'a>(found: &'a [Found], wanted: &str, run: Placed<'_>) -> Result<&'a Artifact, CliError> {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let named = |found: &&Found| digits.len() >= DIGITS_MIN && found.artifact.digest.short(64).starts_with(digits);
    let mut named = found.iter().filter(named).map(|found| &found.artifact);
    let unknown = || {
        CliError::Usage(format!(
            "AgentRun {run} has no artifact {}: {} artifacts {run} lists them, and {DIGITS_MIN} digits of one are enough",
            visible(wanted),
            run.place.belay(),
            run = run.name
        ))
    };
    let first = named.next().ok_or_else(unknown)?;
    if named.all(|other| other.digest == first.digest) { Ok(first) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_protocol::event::ProposedCall;
    use serde_json::json;

    use super::*;
    use crate::place::tests::in_team;

    fn artifact(bytes: &[u8], media_type: &str) -> Artifact {
        let (digest, name) = (Digest::of(bytes), String::new());
        Artifact { digest, bytes: bytes.len() as u64, media_type: media_type.into(), name }
    }

    fn records() -> Vec<Record> {
        let call = ProposedCall {
            tool: "server".into(),
            operation: "getTinyImage".into(),
            args: json!({}),
            definition: Digest::zero(),
            digest: Digest::zero(),
        };
        let artifacts = vec![artifact(b"one", "image/png\u{1b}[2J"), artifact(b"two", "audio/wav")];
        let result = ToolResult { is_error: false, content: String::new(), truncated_from_bytes: None, artifacts };
        let events = [
            Event::CallProposed { call_id: "c1".into(), attempt: 1, call },
            Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 1 },
        ];
        (1..).zip(events).map(|(seq, event)| Record { seq, at: 0, event }).collect()
    }

    #[test]
    fn what_is_listed_names_call_and_operation_and_hides_nothing() {
        let rows: Vec<_> = found(&records()).iter().map(row).collect();
        let digest = Digest::of(b"one").to_string();
        assert_eq!(rows[0], ["c1", "server/getTinyImage", "image/png\\u{1b}[2J", "3", &digest, ""]);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn one_is_picked_by_its_digest_or_the_beginning_of_it() {
        let found = found(&records());
        let digest = Digest::of(b"two");
        for wanted in [digest.to_string(), digest.short(64), digest.short(8)] {
            assert_eq!(pick(&found, &wanted, in_team("r")).unwrap().digest, digest);
        }
        for wanted in [String::new(), "sha256:".into(), digest.short(7), Digest::of(b"three").to_string()] {
            assert!(pick(&found, &wanted, in_team("r")).is_err(), "{wanted}");
        }
    }
}
