//! `belay journal export`: asks the operator by way of the API server's service proxy, with a key that a ReadGrant of
//! one's own names. `--exec` goes through a shell in the operator's pod instead, which an admin can do when the operator
//! serves nobody.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, ExitCode};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_crds::{AgentRun, NameRef, ReadGrant, ReadGrantSpec, ReadPurpose};
use belay_protocol::ARTIFACT_BYTES_MAX;
use belay_protocol::reading::{
    GRANT_HEADER, NONCE_HEADER, Request, SIGNATURE_HEADER, TIME_HEADER, export_path, signed,
};
use futures::AsyncReadExt as _;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::Target;
use crate::exit::{CliError, FAILED};
use crate::run::whoami;

#[derive(clap::Args)]
pub struct ExportArguments {
    run: String,
    /// uid of the AgentRun, where it is gone
    #[arg(long)]
    uid: Option<String>,
    /// Where the operator is installed
    #[arg(long, default_value = "belay-system")]
    operator_namespace: String,
    /// Run kubectl exec in the operator's pod: an admin's way while the operator does not answer
    #[arg(long)]
    exec: bool,
}

/// The ReadGrant's life: one request, and some time for the way.
const VALID_SECONDS: i32 = 60;
/// How often an operator that is just starting is asked, and how long between.
const TRIES: u32 = 20;
const TRY_EVERY: Duration = Duration::from_millis(500);
const UNAVAILABLE: u16 = 503;

pub async fn export(target: &Target, context: Option<&str>, arguments: &ExportArguments) -> Result<ExitCode, CliError> {
    if arguments.exec {
        return by_exec(target, context, arguments);
    }
    let (run, uid, operator_namespace) = (&arguments.run, arguments.uid.as_deref(), &arguments.operator_namespace);
    let text = read(target, &Journaled { run, uid, operator_namespace }).await?;
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|e| CliError::Failed(format!("writing the export: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

/// A run whose journal is read.
pub struct Journaled<'a> {
    pub run: &'a str,
    /// Where the AgentRun is gone.
    pub uid: Option<&'a str>,
    /// Where the operator is installed.
    pub operator_namespace: &'a str,
}

/// The export, with one's own identity. An operator that is just starting is asked again.
pub async fn read(target: &Target, journaled: &Journaled<'_>) -> Result<String, CliError> {
    let uid = run_uid(target, journaled).await?;
    let mut tries = 1;
    loop {
        match ask(target, journaled, &uid).await {
            Err(CliError::Api { source, .. }) if tries < TRIES && is_unavailable(&source) => tries += 1,
            answer => return answer,
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

fn is_unavailable(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == UNAVAILABLE)
}

async fn run_uid(target: &Target, journaled: &Journaled<'_>) -> Result<String, CliError> {
    if let Some(uid) = journaled.uid {
        return Ok(uid.to_owned());
    }
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let found = runs.get_opt(journaled.run).await.map_err(|e| CliError::api("reading the AgentRun", e))?;
    found.and_then(|run| run.metadata.uid).ok_or_else(|| {
        let (run, namespace) = (journaled.run, &target.namespace);
        CliError::Failed(format!("AgentRun {run} is not in namespace {namespace}: if it is gone, say which by --uid"))
    })
}

async fn ask(target: &Target, journaled: &Journaled<'_>, run_uid: &str) -> Result<String, CliError> {
    let request = granted(target, journaled, &export_path(run_uid)).await?;
    target.client.request_text(request).await.map_err(by_proxy)
}

/// The bytes at a path of the operator, no more of them than an artifact may have.
pub async fn fetch(target: &Target, journaled: &Journaled<'_>, path: &str) -> Result<Vec<u8>, CliError> {
    let request = granted(target, journaled, path).await?;
    let answer = target.client.request_stream(request).await.map_err(by_proxy)?;
    let mut bytes = Vec::new();
    let read = std::pin::pin!(answer).take(ARTIFACT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await;
    read.map_err(|e| CliError::Failed(format!("what the operator sent broke off: {e}")))?;
    Ok(bytes)
}

fn by_proxy(error: kube::Error) -> CliError {
    CliError::api("asking the operator by way of the API server's service proxy", error)
}

/// A request for `path` that is signed by a key of its own, for which a grant was made.
async fn granted(target: &Target, journaled: &Journaled<'_>, path: &str) -> Result<http::Request<Vec<u8>>, CliError> {
    let unusable = |_| CliError::Failed("this machine has no randomness to make a key of".to_owned());
    let key = Ed25519KeyPair::generate().map_err(unusable)?;
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(unusable)?;
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    let grants: Api<ReadGrant> = Api::namespaced(target.client.clone(), &target.namespace);
    let by = whoami(target).await?.unwrap_or_default();
    let grant = grant(journaled.run, by, &key);
    let grant = grants.create(&PostParams::default(), &grant).await;
    let grant = grant.map_err(|e| CliError::api(format!("making a ReadGrant for {}", journaled.run), e))?;
    request(&grant, &key, path, &nonce, journaled.operator_namespace)
        .ok_or_else(|| CliError::Failed("the API server returned a ReadGrant without name, uid or time".to_owned()))
}

fn grant(run: &str, by: String, key: &Ed25519KeyPair) -> ReadGrant {
    ReadGrant {
        metadata: ObjectMeta { generate_name: Some("read-".to_owned()), ..ObjectMeta::default() },
        spec: ReadGrantSpec {
            run_ref: NameRef::new(run),
            purpose: ReadPurpose::JournalExport,
            by,
            public_key: STANDARD.encode(key.public_key().as_ref()),
            valid_seconds: VALID_SECONDS,
        },
    }
}

/// The signed request, through the proxy of the API server in front of the operator's Service.
fn request(
    grant: &ReadGrant,
    key: &Ed25519KeyPair,
    path: &str,
    nonce: &str,
    operator_namespace: &str,
) -> Option<http::Request<Vec<u8>>> {
    // By the API server's clock, which the operator's is compared with: this machine's may be wrong.
    let at = grant.metadata.creation_timestamp.as_ref().map(|made| made.0.as_millisecond())?;
    let request = Request { grant_uid: grant.metadata.uid.as_deref()?, method: "GET", path, at, nonce };
    let signature = STANDARD.encode(key.sign(&signed(&request)));
    let name = format!("{}/{}", grant.metadata.namespace.as_deref()?, grant.metadata.name.as_deref()?);
    http::Request::get(format!("/api/v1/namespaces/{operator_namespace}/services/belay-operator:http/proxy{path}"))
        .header(GRANT_HEADER, name)
        .header(TIME_HEADER, at)
        .header(NONCE_HEADER, nonce)
        .header(SIGNATURE_HEADER, signature)
        .body(Vec::new())
        .ok()
}

/// Runs kubectl, which speaks the protocols of exec already: in here they would take a dozen more libraries.
fn by_exec(target: &Target, context: Option<&str>, arguments: &ExportArguments) -> Result<ExitCode, CliError> {
    let named = format!("{}/{}", target.namespace, arguments.run);
    let words = kubectl(context, &arguments.operator_namespace, arguments.uid.as_deref().unwrap_or(&named));
    match Command::new("kubectl").args(&words).status() {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::from(FAILED)), // kubectl and the operator have said why
        Err(error) if error.kind() == ErrorKind::NotFound => Err(CliError::Usage(format!(
            "kubectl is not installed here; where it is, run: kubectl {} > FILE",
            words.join(" ")
        ))),
        Err(error) => Err(CliError::Usage(format!("kubectl cannot be started: {error}"))),
    }
}

fn kubectl(context: Option<&str>, namespace: &str, run: &str) -> Vec<String> {
    let context = context.map(|context| format!("--context={context}"));
    let words = ["-n", namespace, "exec", "deploy/belay-operator", "--", "/belay-operator", "journal", "export", run];
    context.into_iter().chain(words.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn the_other_way_is_an_exec_in_the_operators_pod() {
        assert_eq!(
            kubectl(Some("prod"), "belay-system", "team/triage-1").join(" "),
            "--context=prod -n belay-system exec deploy/belay-operator -- /belay-operator journal export team/triage-1"
        );
    }

    #[test]
    fn a_request_is_signed_as_the_operator_sees_it_and_carries_nothing_secret() {
        let key = Ed25519KeyPair::generate().unwrap();
        let mut grant = grant("nightly", "ada".into(), &key);
        let path = export_path("run-uid");
        assert!(request(&grant, &key, &path, "n", "belay-system").is_none(), "not made yet");
        grant.metadata.name = Some("read-x".into());
        grant.metadata.namespace = Some("team".into());
        grant.metadata.uid = Some("grant-uid".into());
        grant.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let sent = request(&grant, &key, &path, "0123456789abcdef", "belay-system").unwrap();
        assert_eq!(
            sent.uri().path(),
            "/api/v1/namespaces/belay-system/services/belay-operator:http/proxy/v1/runs/run-uid/journal"
        );
        let header = |name: &str| sent.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!((header(GRANT_HEADER), header(TIME_HEADER)), ("team/read-x", "0"));
        let expected = Request {
            grant_uid: "grant-uid",
            method: "GET",
            path: "/v1/runs/run-uid/journal",
            at: 0,
            nonce: "0123456789abcdef",
        };
        let public = STANDARD.decode(&grant.spec.public_key).unwrap();
        let signature = STANDARD.decode(header(SIGNATURE_HEADER)).unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(&signed(&expected), &signature).unwrap();
    }
}
