//! An HTTP API: its operations as they are described, and one request for each permitted call.

mod inline;
mod openapi;
mod operation;
mod request;
mod response;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::call::{CallBinding, CredentialBinding};
use belay_protocol::event::{FailureReason, NotSentReason};
use belay_protocol::plan::{HttpOperations, Inject, PlanCredential};
use http::StatusCode;
use serde_json::Value;

use self::openapi::{DOCUMENT_BYTES_MAX, Offered, Terms};
use self::operation::{Carrier, Operation, Place};
use self::request::Request;
use self::response::{Answer, Asked, outcome};
use super::attachment::{Attachment, Attachments};
use super::wire::{CONNECT_TIMEOUT, Endpoint};
use super::{Call, Definition, LeftOut, ListError, Outcome, ToolServer};
use crate::credential::Credentials;
use crate::credential::inject::inject;
use crate::egress::{self, Destinations, EgressError, Trust, piece};
use crate::permit::{BootTime, Permit, Refusal};
use crate::redact::Redactor;

/// The most bytes of one answer that are read.
const RESPONSE_BYTES_MAX: usize = 8 * 1024 * 1024;
const SHOWN_BYTES: usize = 500;
const ACCEPT: &str = "application/json, text/*;q=0.9, */*;q=0.5";
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The folder in which the kubelet mounts OpenAPI documents: `<folder>/<tool>/document`.
#[derive(Clone, Debug)]
pub struct Documents(PathBuf);

/// One HTTP API, whose operations are read when they are first needed.
pub struct HttpApi {
    endpoint: Endpoint,
    described: HttpOperations,
    documents: Documents,
    http: egress::Client,
    credentials: Credentials,
    redactor: Redactor,
    operations: Option<BTreeMap<String, Operation>>,
    left_out: Vec<LeftOut>,
    /// Of the newest result.
    attached: Vec<Attachment>,
}

impl Documents {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// None: it is not there. At most one byte more than a document may hold.
    fn read(&self, tool: &str) -> Option<Vec<u8>> {
        // Names are Kubernetes object names; whatever else they were, they never leave the folder.
        if tool.is_empty() || tool.contains('/') || tool.starts_with('.') {
            return None;
        }
        let file = File::open(self.0.join(tool).join("document")).ok()?;
        let mut bytes = Vec::new();
        file.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl HttpApi {
    pub fn new(
        endpoint: Endpoint,
        destinations: &Destinations,
        described: HttpOperations,
        documents: Documents,
        credentials: Credentials,
        redactor: Redactor,
    ) -> Result<Self, EgressError> {
        let trust = endpoint.ca.clone().map(|ca| Trust { field: "spec.http.tls.caConfigMapKeyRef", ca });
        let http = destinations.client(&endpoint.url, CONNECT_TIMEOUT, trust)?;
        let (operations, left_out, attached) = (None, Vec::new(), Vec::new());
        Ok(Self { endpoint, described, documents, http, credentials, redactor, operations, left_out, attached })
    }

    fn read(&self) -> Result<Offered, ListError> {
        let terms = Terms {
            base_url: &self.endpoint.url,
            carrier: self.endpoint.credential.as_ref().map(carrier),
            only: match &self.described {
                HttpOperations::Document { only, .. } => only,
                HttpOperations::Inline(_) => &[],
            },
        };
        match &self.described {
            HttpOperations::Inline(described) => {
                let operations = inline::read(described, &terms)
                    .map_err(|why| self.error(FailureReason::DefinitionsInvalid, &why))?;
                Ok(Offered { operations, left_out: Vec::new() })
            }
            HttpOperations::Document { config_map, key, .. } => {
                let subject = format!("spec.http.openAPI: key {key} of ConfigMap {config_map}");
                let bytes = self.documents.read(&self.endpoint.tool).ok_or_else(|| {
                    let why = format!("spec.http.openAPI: ConfigMap {config_map} has no key {key}, or is not there");
                    self.error(FailureReason::DocumentMissing, &why)
                })?;
                let text = str::from_utf8(&bytes).map_err(|_| "is no text in UTF-8".to_owned());
                text.and_then(|text| openapi::read(text, &terms))
                    .map_err(|why| self.error(FailureReason::DefinitionsInvalid, &format!("{subject} {why}")))
            }
        }
    }

    fn load(&mut self) -> Result<&BTreeMap<String, Operation>, ListError> {
        let Offered { operations, mut left_out } = self.read()?;
        let mut by_name = BTreeMap::new();
        for operation in operations {
            match operation.definition.told_value(self.endpoint.credential.as_ref(), &self.redactor) {
                None => drop(by_name.insert(operation.definition.name.clone(), operation)),
                Some(why) => left_out.push(why),
            }
        }
        self.left_out = left_out;
        Ok(self.operations.insert(by_name))
    }

    /// What it says goes into status: a document may hold what a Credential does.
    fn error(&self, reason: FailureReason, why: &str) -> ListError {
        let words = format!("Tool {}: {why}", self.endpoint.tool);
        ListError { reason, message: piece(&self.redactor.redact(&words), SHOWN_BYTES) }
    }

    fn shown(&self, text: &str) -> String {
        piece(&self.redactor.redact(text), SHOWN_BYTES)
    }

    fn not_sent(&self, reason: NotSentReason, message: &str) -> Outcome {
        Outcome::NotSent { reason, message: self.shown(message) }
    }

    /// The request that the call stands for, with its Credential, and what to send it with. All that decides where it
    /// goes is looked at here.
    async fn prepared(&self, call: &Call) -> Result<(reqwest::Client, reqwest::Request), Outcome> {
        let operation = self.operations.as_ref().and_then(|operations| operations.get(&call.operation));
        let Some(operation) = operation.filter(|operation| operation.definition.digest == call.definition) else {
            let message = format!("{} is not defined here as it was when the call was proposed", call.operation);
            return Err(self.not_sent(NotSentReason::DigestMismatch, &message));
        };
        let built = request::build(&operation.template, &self.endpoint.url, &call.arguments);
        let built = built.map_err(|why| self.not_sent(NotSentReason::MalformedArguments, &why))?;
        let Request { method, url, headers, body } = built;
        let client = self.http.open(url.as_str());
        let client = client.map_err(|error| self.refused(error.reason(), &error.to_string()))?;
        let mut request = reqwest::Request::new(method, url);
        request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(ACCEPT));
        // What is compressed can neither be read nor redacted here.
        request.headers_mut().insert(http::header::ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
        request.headers_mut().extend(headers);
        *request.body_mut() = body.map(Into::into);
        if let Some(key) = &call.key {
            let key = http::HeaderValue::from_str(key);
            let key = key.map_err(|error| self.not_sent(NotSentReason::MalformedArguments, &error.to_string()))?;
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        }
        if let Some(credential) = &self.endpoint.credential {
            let (url, ca) = (request.url().as_str(), self.endpoint.ca.as_ref());
            let injection = inject(&self.credentials, credential, request.method(), url, ca).await;
            injection.map_err(|error| self.refused(error.reason(), &error.to_string()))?.put(&mut request);
        }
        Ok((client, request))
    }

    fn refused(&self, reason: FailureReason, why: &str) -> Outcome {
        self.not_sent(egress::not_sent(reason), why)
    }

    /// Spends the permit on this very call, or says why nothing may be sent.
    fn depart(&self, call: &Call, permit: Permit) -> Result<(), Outcome> {
        let mismatch = |message: String| self.not_sent(NotSentReason::DigestMismatch, &message);
        let args = Value::Object(call.arguments.clone());
        let credential = self.endpoint.credential.as_ref();
        let binding = CallBinding {
            tool: &self.endpoint.tool,
            definition: call.definition,
            operation: &call.operation,
            args: &args,
            credential: credential.map(|one| CredentialBinding { name: &one.name, uid: &one.uid }),
            destination: &self.endpoint.url,
            inputs: call.inputs.digest().map_err(|error| mismatch(error.to_string()))?,
        };
        let digest = binding.digest().map_err(|error| mismatch(error.to_string()))?;
        match permit.spend(digest, BootTime::now(), CONNECT_TIMEOUT) {
            Ok(()) => Ok(()),
            Err(Refusal::Expired) => Err(Outcome::PermitExpired),
            Err(refusal @ Refusal::OtherBytes) => Err(mismatch(refusal.to_string())),
        }
    }

    /// From the first byte on whatever is not a complete answer is an unknown end.
    async fn exchange(
        &self,
        http: &reqwest::Client,
        request: reqwest::Request,
        attachments: &mut Attachments<'_>,
    ) -> Outcome {
        let (method, url) = (request.method().clone(), request.url().clone());
        let authorization = request.headers().get(http::header::AUTHORIZATION).cloned();
        let broke = |error: &reqwest::Error| {
            if let Some(refused) = egress::refused(error) {
                return self.not_sent(NotSentReason::DestinationNotAllowed, &refused.to_string());
            }
            let why = self.shown(&egress::causes(error));
            if error.is_connect() {
                Outcome::NotSent { reason: NotSentReason::Unreachable, message: why }
            } else {
                Outcome::Unknown { message: format!("the connection broke before the answer: {why}") }
            }
        };
        let mut response = match http.execute(request).await {
            Ok(response) => response,
            Err(error) => return broke(&error),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        if let Some(credential) = self.endpoint.credential.as_ref().filter(|_| status == StatusCode::UNAUTHORIZED) {
            self.credentials.refused(credential, &self.endpoint.url, authorization.as_ref());
        }
        let mut body = Some(Vec::new());
        while let Some(read) = body.as_mut() {
            match response.chunk().await {
                Ok(Some(chunk)) if read.len() + chunk.len() > RESPONSE_BYTES_MAX => body = None,
                Ok(Some(chunk)) => read.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return broke(&error),
            }
        }
        outcome(&Answer { status, headers, body }, &Asked { method, url }, attachments)
    }
}

/// What the Credential goes into.
fn carrier(credential: &PlanCredential) -> Carrier<'_> {
    let (place, name) = match &credential.inject {
        Inject::Bearer {} | Inject::Basic { .. } | Inject::ClientCredentials(_) => {
            (Place::Header, http::header::AUTHORIZATION.as_str())
        }
        Inject::Header { name, .. } => (Place::Header, name.as_str()),
        Inject::Query { name } => (Place::Query, name.as_str()),
    };
    Carrier { place, name }
}

#[async_trait]
impl ToolServer for HttpApi {
    /// Reads what describes the API anew, and those who vouch for it; the API itself is not asked.
    async fn list(&mut self) -> Result<Vec<Definition>, ListError> {
        if let Err(error @ EgressError::Authorities(_)) = self.http.open(&self.endpoint.url) {
            return Err(self.error(error.reason(), &error.to_string()));
        }
        let operations = self.load()?;
        Ok(operations.values().map(|operation| operation.definition.clone()).collect())
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn take_attachments(&mut self) -> Vec<Attachment> {
        std::mem::take(&mut self.attached)
    }

    async fn prepare(&mut self) -> Result<(), ListError> {
        if self.operations.is_none() {
            self.load()?;
        }
        Ok(())
    }

    fn misfit(&self, call: &Call) -> Option<String> {
        let operation = self.operations.as_ref()?.get(&call.operation)?;
        let built = request::build(&operation.template, &self.endpoint.url, &call.arguments);
        built.err().map(|why| self.shown(&why))
    }

    async fn call(&mut self, call: &Call, permit: Permit, timeout: Duration) -> Outcome {
        let (client, request) = match self.prepared(call).await {
            Ok(prepared) => prepared,
            Err(outcome) => return outcome,
        };
        if let Err(outcome) = self.depart(call, permit) {
            return outcome;
        }
        let mut attachments = Attachments::new(&self.redactor);
        let ended = tokio::time::timeout(timeout, self.exchange(&client, request, &mut attachments)).await;
        self.attached = attachments.into_found();
        ended.unwrap_or_else(|_| Outcome::Unknown {
            message: format!("no answer within {} s (spec.callTimeoutSeconds)", timeout.as_secs()),
        })
    }
}
