//! `belay resolve NAME`: a person says what became of a call, and signs what was shown.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use belay_crds::{Decision, DecisionAnswer, DecisionVerdict, Happened, Retry};
use clap::Args;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{api, checked_digest, fetch, is_sealed, rendered};
use crate::Target;
use crate::exit::CliError;
use crate::run::whoami;

#[derive(Args)]
#[group(skip)]
pub struct ResolveArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    #[command(flatten)]
    answer: Answer,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    /// Do not ask back
    #[arg(short, long)]
    yes: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Answer {
    /// It took effect; the model is told this result
    #[arg(long, value_name = "RESULT")]
    happened: Option<String>,
    /// It did not, or twice does no harm: send it again
    #[arg(long)]
    retry: bool,
    /// End the run
    #[arg(long)]
    end: bool,
}

pub async fn resolve(target: &Target, arguments: ResolveArguments) -> Result<ExitCode, CliError> {
    let name = &arguments.name;
    let approval = fetch(target, name).await?;
    if is_sealed(&approval) {
        return Err(CliError::Failed(format!("Approval {name} is sealed: it was decided, see belay show {name}")));
    }
    let request = &approval.spec.request;
    let digest = checked_digest(name, request)?;
    print!("{}", rendered(name, request));
    if !arguments.yes && !confirmed(&arguments.answer)? {
        return Err(CliError::Usage("nothing was decided".to_owned()));
    }
    let me = whoami(target).await?.unwrap_or_default();
    let (verdict, answer) = words(&arguments.answer);
    let decisions: Vec<Decision> = (request.requirements.iter())
        .map(|one| Decision {
            policy: one.policy.clone(),
            by: me.clone(),
            digest: digest.to_string(),
            verdict,
            answer: answer.clone(),
            reason: arguments.reason.clone(),
        })
        .collect();
    // Each decision has a manager of its own: with one for both, a Deny would take back the Allow before it.
    let manager = format!("belay-{me}-{verdict:?}").chars().take(MANAGER_CHARACTERS_MAX).collect::<String>();
    let body = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name, "uid": approval.metadata.uid},
        "spec": {"decisions": decisions},
    });
    api(target)
        .patch(name, &PatchParams::apply(&manager), &Patch::Apply(body))
        .await
        .map_err(|e| CliError::api(format!("deciding Approval {name}"), e))?;
    println!("approval.belay.dev/{name} decided by {me}");
    Ok(ExitCode::SUCCESS)
}

const MANAGER_CHARACTERS_MAX: usize = 128;

fn words(answer: &Answer) -> (DecisionVerdict, Option<DecisionAnswer>) {
    let happened = answer.happened.clone().map(|result| Happened { result });
    let retry = answer.retry.then(Retry::default);
    if happened.is_none() && retry.is_none() {
        return (DecisionVerdict::Deny, None);
    }
    (DecisionVerdict::Allow, Some(DecisionAnswer { happened, retry }))
}

/// Only a person at a terminal can be asked back.
fn confirmed(answer: &Answer) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage("there is no terminal to ask back on: add --yes once you have read it".to_owned()));
    }
    let what = match answer {
        Answer { happened: Some(_), .. } => "it happened, with that result",
        Answer { retry: true, .. } => "send it again",
        Answer { .. } => "end the run",
    };
    print!("Decide: {what}? [y/N] ");
    let mut line = String::new();
    let read = std::io::stdout().flush().and_then(|()| std::io::stdin().read_line(&mut line));
    read.map_err(|e| CliError::Usage(format!("reading the answer: {e}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
