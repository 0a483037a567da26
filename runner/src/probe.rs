//! Mode `probe`: answers the operator's one question about a credential or a tool's server, and leaves.

use std::time::Duration;

use belay_protocol::digest::canonical;
use belay_protocol::event::Failure;
use belay_protocol::probe::{OperationDefinition, ProbeReport, ProbeTask, bounded};
use belay_protocol::wire::probe_message::Body as ToOperator;
use belay_protocol::wire::probe_order::Body as FromOperator;
use belay_protocol::wire::{ProbeHello, ProbeMessage, ProbeOrder};
use belay_protocol::{Digest, PROTOCOL_VERSION};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::config::Config;
use crate::credential::Credentials;
use crate::egress::EgressError;
use crate::log::keep_secret;
use crate::passage;
use crate::redact::Redactor;
use crate::session::{Link, LinkError};
use crate::tools::http::{Documents, HttpApi};
use crate::tools::mcp::McpServer;
use crate::tools::schema::ArgumentSchema;
use crate::tools::{Definition, Endpoint, LeftOut, OPERATIONS_MAX, ToolServer};

const ATTEMPTS_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_secs(2);
/// The operator answers at once; listing a server has its own time-out.
const SILENCE: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the task cannot be read, or its answer not written: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error("the operator left before it gave a task or took the report")]
    Unheard,
}

/// Answers one task; tries again while the operator cannot be reached.
pub async fn probe(config: &Config) -> Result<(), ProbeError> {
    let mut attempt = 1;
    loop {
        match answer(config).await {
            Ok(()) => return Ok(()),
            Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
            Err(error) => tracing::warn!(%error, attempt, "the probe starts over"),
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn answer(config: &Config) -> Result<(), ProbeError> {
    let link = Link::new(&config.operator, config.token_file.clone())?;
    let (outgoing, queue) = mpsc::channel(2);
    say(&outgoing, ToOperator::Hello(ProbeHello { protocol_version: PROTOCOL_VERSION })).await?;
    let (mut client, request) = link.call(ReceiverStream::new(queue)).await?;
    let mut incoming = client.probe(request).await.map_err(LinkError::Status)?.into_inner();
    let credentials = Credentials::new(config.credentials_folder.clone()).reaching(config.way_out());
    let documents = Documents::new(config.documents_folder.clone());
    loop {
        match hear(&mut incoming).await? {
            FromOperator::Task(task) => {
                let report = report(serde_json::from_slice(&task)?, &credentials, &documents).await?;
                say(&outgoing, ToOperator::Report(serde_json::to_vec(&report)?)).await?;
            }
            FromOperator::Done(_) => return Ok(()),
        }
    }
}

async fn say(outgoing: &mpsc::Sender<ProbeMessage>, body: ToOperator) -> Result<(), ProbeError> {
    outgoing.send(ProbeMessage { body: Some(body) }).await.map_err(|_| ProbeError::Unheard)
}

async fn hear(incoming: &mut Streaming<ProbeOrder>) -> Result<FromOperator, ProbeError> {
    let heard = tokio::time::timeout(SILENCE, incoming.message()).await.map_err(|_| LinkError::Silent)?;
    let order = heard.map_err(LinkError::Status)?.ok_or(ProbeError::Unheard)?;
    Ok(order.body.ok_or(LinkError::Protocol("an empty message"))?)
}

async fn report(task: ProbeTask, credentials: &Credentials, documents: &Documents) -> Result<ProbeReport, ProbeError> {
    match task {
        ProbeTask::Network { address } => Ok(ProbeReport::Network(passage::look(&address).await)),
        ProbeTask::Credential { name } => Ok(ProbeReport::Credential(credentials.presence(&name))),
        ProbeTask::Tool { name, namespace, url, ca, credential, timeouts, private_hosts, http } => {
            let credential = credential.map(|credential| *credential);
            let redactor = Redactor::new(credentials.clone(), credential.as_slice());
            keep_secret(redactor.clone());
            let destinations = credentials.destinations().within(&namespace, &private_hosts);
            let endpoint = Endpoint { tool: name, url, ca, credential };
            let credentials = credentials.clone().reaching(destinations.clone());
            let mut server: Box<dyn ToolServer> = match http {
                Some(described) => {
                    let (documents, redactor) = (documents.clone(), redactor.clone());
                    Box::new(HttpApi::new(endpoint, &destinations, *described, documents, credentials, redactor)?)
                }
                None => Box::new(McpServer::of_probe(endpoint, &destinations, &timeouts, credentials)?),
            };
            let listed = server.list().await;
            Ok(ProbeReport::Tool(match listed {
                Ok(definitions) => {
                    let left_out = server.left_out().iter().map(|one| unusable(one, &redactor));
                    Ok(bounded(definitions.into_iter().map(shown).chain(left_out).take(OPERATIONS_MAX).collect()))
                }
                Err(error) => Err::<_, Failure>(error.into_failure()),
            }))
        }
    }
}

/// With the reason, where no argument could be checked against its schema: nobody may call it then. What holds a value of
/// the Credential was left out before.
fn shown(definition: Definition) -> OperationDefinition {
    let unusable = ArgumentSchema::compile(&definition.input_schema).err().map(|unfit| unfit.to_string());
    let schema = canonical(&definition.input_schema).ok();
    OperationDefinition {
        name: definition.name,
        digest: definition.digest,
        description: definition.description,
        input_schema: schema.and_then(|bytes| String::from_utf8(bytes).ok()),
        unusable,
    }
}

fn unusable(left_out: &LeftOut, redactor: &Redactor) -> OperationDefinition {
    let LeftOut { name, why } = left_out.told(redactor);
    OperationDefinition {
        name,
        digest: Digest::zero(),
        description: String::new(),
        input_schema: None,
        unusable: Some(why),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credential::tests::{credential, mounted};

    /// The value lies across every place at which words are cut.
    #[test]
    fn what_is_told_of_an_operation_is_redacted_before_it_is_cut() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2-hunter2-hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("key", &[])]);
        for before in (100..130).chain(370..400) {
            let words = format!("{}hunter2-hunter2-hunter2", "x".repeat(before));
            let told = unusable(&LeftOut::new(&words, &words), &redactor);
            assert!(!format!("{told:?}").contains("hunter"), "{told:?}");
            assert!(told.name.len() <= 128 && told.unusable.unwrap().len() <= 400);
        }
    }
}
