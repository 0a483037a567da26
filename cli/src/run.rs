//! `belay run AGENT`: creates an AgentRun in the user's name and, with `--wait`, shows it to its end.

use std::process::ExitCode;
use std::time::Duration;

use belay_crds::{AgentRun, AgentRunSpec, NameRef};
use clap::Args;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::exit::{CliError, TIMED_OUT};
use crate::{Target, exit, follow, get};

#[derive(Args)]
pub struct RunArguments {
    /// Name of the Agent
    agent: String,
    /// What the agent shall do; `-` reads standard input
    #[arg(long)]
    input: String,
    /// Name of the run; made from the Agent's otherwise
    #[arg(long)]
    name: Option<String>,
    /// Print the steps and wait for the end
    #[arg(long)]
    wait: bool,
    /// Seconds to wait at most; the run goes on afterwards
    #[arg(long, requires = "wait")]
    timeout: Option<u64>,
}

pub async fn run(target: &Target, arguments: RunArguments) -> Result<ExitCode, CliError> {
    let input = read_input(arguments.input)?;
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let me = whoami(target).await?;
    let run = build_run(&arguments.agent, arguments.name, input, me);
    let run = runs
        .create(&PostParams::default(), &run)
        .await
        .map_err(|e| CliError::api(format!("starting a run of Agent {}", arguments.agent), e))?;
    let name = run.metadata.name.unwrap_or_default();
    println!("agentrun.belay.dev/{name} created");
    if !arguments.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let limit = arguments.timeout.map_or(Duration::MAX, Duration::from_secs);
    match tokio::time::timeout(limit, follow::to_the_end(target, &name)).await {
        Err(_) => {
            eprintln!("belay: {name} goes on; look again with: {} get {name}", target.place.belay());
            Ok(ExitCode::from(TIMED_OUT))
        }
        Ok(ended) => {
            let ended = ended?;
            get::print_end(&ended);
            Ok(exit::of_phase(get::phase(&ended)))
        }
    }
}

fn read_input(input: String) -> Result<String, CliError> {
    if input != "-" {
        return Ok(input);
    }
    std::io::read_to_string(std::io::stdin()).map_err(|e| CliError::Usage(format!("reading standard input: {e}")))
}

fn build_run(agent: &str, name: Option<String>, input: String, me: Option<String>) -> AgentRun {
    let generate_name = name.is_none().then(|| format!("{agent}-"));
    AgentRun {
        metadata: ObjectMeta { name, generate_name, ..ObjectMeta::default() },
        spec: AgentRunSpec {
            agent_ref: NameRef { name: agent.to_owned() },
            input,
            requested_by: me,
            ..AgentRunSpec::default()
        },
        status: None,
    }
}

/// The user's name as the API server knows it; admission compares `spec.requestedBy` with it.
pub async fn whoami(target: &Target) -> Result<Option<String>, CliError> {
    let api: Api<SelfSubjectReview> = Api::all(target.client.clone());
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|e| CliError::api("asking the server who you are", e))?;
    Ok(review.status.and_then(|status| status.user_info).and_then(|user| user.username))
}
