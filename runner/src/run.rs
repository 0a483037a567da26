//! Mode `run`: opens the session, reads the Welcome, and gives the loop what it needs.

use std::sync::Arc;
use std::time::Duration;

use belay_protocol::Plan;
use belay_protocol::wire::Welcome;
use tokio::sync::{oneshot, watch};

use crate::agent_loop::{Agent, LoopError, Parting, Parts, Progress, WelcomeError};
use crate::config::Config;
use crate::credential::Credentials;
use crate::egress::EgressError;
use crate::log::keep_secret;
use crate::models;
use crate::redact::Redactor;
use crate::session::{Link, LinkError, Operator, Order, Started, Uploads, raise, start, stop_within};
use crate::tools;
use crate::tools::http::Documents;

/// How long a signal leaves to what is in flight; the kubelet kills after 30 s.
const SIGNAL_GRACE: Duration = Duration::from_secs(20);
/// How long the last words to the operator may take.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the operator's Welcome cannot be used: {0}")]
    Welcome(#[from] WelcomeError),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// Runs one epoch as `instance` until the operator or `stop` ends it.
pub async fn run(
    config: &Config,
    instance: String,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Parting, RunError> {
    let link = Link::new(&config.operator, config.token_file.clone())?;
    let uploads = Uploads::new(link.clone(), instance.clone());
    let Started { operator, orders, welcomed, mut conversation } = start(link, instance);
    let signal = tokio::spawn(stop_on(stop, orders));
    let ended = epoch(config, operator, welcomed, uploads).await;
    signal.abort();
    let said = tokio::time::timeout(FAREWELL, &mut conversation).await;
    conversation.abort();
    if let Ok(Ok(Err(error))) = said {
        return Err(error.into());
    }
    ended
}

async fn epoch(
    config: &Config,
    operator: Operator,
    welcomed: oneshot::Receiver<Welcome>,
    uploads: Uploads,
) -> Result<Parting, RunError> {
    let welcome = tokio::select! {
        welcome = welcomed => welcome,
        () = operator.stopped() => return Ok(Parting::Stopped),
    };
    // A conversation that ended without a Welcome says why itself.
    let Ok(welcome) = welcome else { return Ok(Parting::Stopped) };
    let (plan, progress) = Progress::read(&welcome)?;
    drop(welcome);
    let documents = Documents::new(config.documents_folder.clone());
    let destinations = config.way_out().for_plan(&plan);
    let credentials = Credentials::new(config.credentials_folder.clone()).reaching(destinations);
    let parts = parts(&plan, &credentials, &documents, uploads)?;
    Ok(Agent::new(plan, progress, operator, parts).run().await?)
}

async fn stop_on(stop: impl Future<Output = ()>, orders: watch::Sender<Order>) {
    stop.await;
    raise(&orders, stop_within(SIGNAL_GRACE));
}

fn parts(
    plan: &Plan,
    credentials: &Credentials,
    documents: &Documents,
    uploads: Uploads,
) -> Result<Parts, EgressError> {
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    keep_secret(redactor.clone());
    let models = plan.models().map(|model| models::client(plan, model, credentials, &redactor));
    let models = models.collect::<Result<_, _>>()?;
    let servers = plan.tools.iter().map(|tool| {
        let server = tools::of_plan(plan, tool, credentials, documents, &redactor)?;
        Ok((tool.name.clone(), server))
    });
    let servers = servers.collect::<Result<_, EgressError>>()?;
    Ok(Parts { models, servers, redactor, keeper: Arc::new(uploads) })
}
