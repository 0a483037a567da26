//! `belay show NAME`: one question, to read or as the YAML that decides it with kubectl.

use std::process::ExitCode;

use belay_crds::{Approval, ApprovalPurpose, Decision, DecisionVerdict, Requirement};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::arguments::Detail;
use super::deciding::{Decider, decider, how};
use super::difference::difference;
use super::question::{question, standing};
use super::{checked_digest, fetch};
use crate::Target;
use crate::exit::CliError;

#[derive(Args)]
pub struct ShowArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    /// Fold nothing away
    #[arg(long)]
    full: bool,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// To read
    Text,
    /// A decision to complete and to apply with kubectl
    YamlDecision,
}

pub async fn show(target: &Target, arguments: &ShowArguments) -> Result<ExitCode, CliError> {
    let approval = fetch(target, &arguments.name).await?;
    match arguments.output {
        Output::Text => text(target, &approval, arguments).await,
        Output::YamlDecision => {
            checked_digest(&arguments.name, &approval.spec.request)?;
            let who = decider(target, &approval.spec.request).await?;
            print!("{}", yaml_decision(&approval, &target.namespace, &who));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn text(target: &Target, approval: &Approval, arguments: &ShowArguments) -> Result<ExitCode, CliError> {
    let (name, request) = (&arguments.name, &approval.spec.request);
    let detail = if arguments.full { Detail::Full } else { Detail::Folded };
    let placed = target.placed(name);
    print!("{}{}", question(placed, request, detail).text, standing(approval, &request.digest));
    if request.purpose == ApprovalPurpose::Call {
        print!("{}", difference(target, approval, detail).await);
    }
    // Last: whoever sees nothing else is to see this.
    let digest = checked_digest(name, request)?;
    if !approval.is_sealed() {
        println!(
            "Decide with {}\nor sign {digest} with kubectl: {} show {name} -o yaml-decision",
            how(placed, request.purpose),
            target.place.belay()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A whole object for `kubectl apply --server-side`: the Allows of `who` that are there, which have to be repeated, and
/// one for each policy that they may say yes for. Strings are JSON, which YAML reads.
fn yaml_decision(approval: &Approval, namespace: &str, who: &Decider) -> String {
    let (request, user) = (&approval.spec.request, who.name.as_str());
    let may = |one: &&Requirement| who.may.contains(&one.policy) && !request.excludes(one, user);
    let may = request.requirements.iter().filter(may);
    let metadata = json!({"name": approval.metadata.name, "namespace": namespace, "uid": approval.metadata.uid});
    let said: Vec<&Decision> = (approval.spec.decisions.iter())
        .filter(|one| one.by == user && one.verdict == DecisionVerdict::Allow)
        .collect();
    let earlier = said.iter().map(|decision| format!("  - {}\n", json!(decision)));
    let new = may.filter(|one| !said.iter().any(|said| said.policy == one.policy));
    let answer = match request.purpose {
        ApprovalPurpose::Call | ApprovalPurpose::Drift => "",
        ApprovalPurpose::Question if request.question.as_ref().is_some_and(|question| question.url.is_some()) => {
            "    answer: {input: {}}            # the page was opened; none with Deny\n"
        }
        ApprovalPurpose::Question => {
            "    answer: {input: {content: \"\"}} # complete it: '{\"field\":\"value\"}'; none with Deny\n"
        }
        ApprovalPurpose::Unknown => {
            "    answer: {}                     # complete it: {retry: {}} or {happened: {result: \"..\"}}; none with Deny\n"
        }
    };
    let new = new.map(|one| {
        let more = one.grants.map_or_else(String::new, |terms| {
            format!(
                "    # answer: {{grant: {{when: 'args.x == 1', count: {}, seconds: {}}}}}   # allows as many more in this run\n",
                terms.max_count, terms.max_seconds
            )
        });
        format!(
            "  - policy: {}\n    by: {}\n    digest: {}\n    verdict: Allow                 # or Deny, with {}\n{answer}{more}",
            json!(one.policy),
            json!(user),
            json!(request.digest),
            "--field-manager=$USER-deny",
        )
    });
    let lines: String = earlier.chain(new).collect();
    let lines = if lines.is_empty() {
        "  decisions: []                    # you may approve for none of the policies that ask: see belay show\n"
            .to_owned()
    } else {
        format!("  decisions:\n{lines}")
    };
    format!(
        "# kubectl apply --server-side --field-manager=$USER -f FILE\napiVersion: belay.dev/v1alpha1\nkind: Approval\nmetadata: \
         {metadata}\nspec:\n{lines}"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::Value;

    use super::super::question::tests::approval;
    use super::*;

    fn who(name: &str, may: &[&str]) -> Decider {
        Decider { name: name.to_owned(), may: may.iter().map(|policy| (*policy).to_owned()).collect() }
    }

    fn parsed(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_decision_for_kubectl_is_whole_and_signed() {
        let approval = approval(&json!({}), &[]);
        let yaml = yaml_decision(&approval, "team", &who("ada \"x\": #", &["careful", "owners"]));
        let decision = |policy: &str| json!({"policy": policy, "by": "ada \"x\": #", "digest": approval.spec.request.digest, "verdict": "Allow"});
        let expected = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
            "metadata": {"name": "nightly-c1-x", "namespace": "team", "uid": "a1"},
            "spec": {"decisions": [decision("careful"), decision("owners")]},
        });
        assert_eq!(parsed(&yaml), expected, "{yaml}");
    }

    #[test]
    fn what_one_said_before_is_repeated_and_nothing_of_others() {
        let approval =
            approval(&json!({}), &[("owners", "ada", "Allow"), ("owners", "bob", "Allow"), ("careful", "ada", "Deny")]);
        let yaml = parsed(&yaml_decision(&approval, "team", &who("ada", &["careful", "owners"])));
        let decisions: Vec<&Value> = yaml["spec"]["decisions"].as_array().unwrap().iter().collect();
        let keys: Vec<_> =
            decisions.iter().map(|one| (one["policy"].as_str().unwrap(), one["verdict"].as_str().unwrap())).collect();
        assert_eq!(keys, [("owners", "Allow"), ("careful", "Allow")]);
        assert!(decisions.iter().all(|one| one["by"] == "ada"));
    }

    #[test]
    fn an_unknowns_answer_has_to_be_completed_and_who_may_say_yes_for_nothing_is_told() {
        let unknown = approval(&json!({"purpose": "Unknown"}), &[]);
        let yaml = yaml_decision(&unknown, "team", &who("ada", &["owners"]));
        assert_eq!(parsed(&yaml)["spec"]["decisions"][0]["answer"], json!({}), "which the schema refuses");
        let own = yaml_decision(&approval(&json!({}), &[]), "team", &who("eve", &["careful"]));
        assert!(own.contains("you may approve for none"), "eve created the run: {own}");
        assert!(yaml_decision(&unknown, "team", &who("ada", &[])).contains("you may approve for none"));
    }
}
