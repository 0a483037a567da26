//! `belay policy`: what an ApprovalPolicy says, without a cluster. `test` is for the pull request that changes one,
//! `replay` for knowing what it would have done.

mod documents;
mod replay;
mod schema;

use std::path::PathBuf;
use std::process::ExitCode;

use belay_crds::ApprovalPolicy;
use belay_policy::{Engine, Identity, Trial, freeze, trials};
use belay_protocol::plan::PlanPolicy;
use clap::Subcommand;

use self::documents::Documents;
use crate::exit::{CliError, FAILED};

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Check every ApprovalPolicy in files and run its tests. Exit codes: 0 all is well, 1 something is not, 2 no policy
    /// to be found or read
    Test {
        /// YAML with ApprovalPolicies, and Tools and Agents if names are to be looked up
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Judge what runs proposed by a policy, and print what it would change
    Replay(replay::ReplayArguments),
}

/// Needs no cluster.
pub fn policy(command: &PolicyCommand) -> Result<ExitCode, CliError> {
    match command {
        PolicyCommand::Test { files } => {
            let documents = Documents::read(files)?;
            let report = check(&documents);
            report.lines.iter().for_each(|line| println!("{line}"));
            Ok(if report.faults == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
        }
        PolicyCommand::Replay(arguments) => replay::replay(arguments),
    }
}

/// What is to be printed, and how much of it is wrong.
struct Report {
    lines: Vec<String>,
    faults: usize,
}

fn check(documents: &Documents) -> Report {
    let mut report = Report { lines: Vec::new(), faults: 0 };
    for (file, complaint) in &documents.malformed {
        report.faults += 1;
        report.lines.push(format!("BAD   {}: {complaint}", file.display()));
    }
    for policy in &documents.policies {
        let (faults, lines) = check_one(policy);
        report.faults += faults;
        report.lines.extend(lines);
        report.lines.extend(documents.unknown_names(policy).into_iter().map(|line| format!("warn  {line}")));
    }
    report.lines.extend(documents.missing_policies().into_iter().map(|line| format!("warn  {line}")));
    let (policies, tests) =
        (documents.policies.len(), documents.policies.iter().map(|policy| policy.spec.tests.len()).sum::<usize>());
    let end = match report.faults {
        0 => format!("{policies} policies, {tests} tests: all is well"),
        faults => format!("{policies} policies, {tests} tests: {faults} not as they have to be"),
    };
    report.lines.push(end);
    report
}

fn check_one(policy: &ApprovalPolicy) -> (usize, Vec<String>) {
    let name = policy.metadata.name.clone().unwrap_or_default();
    let tried = Engine::compile(&frozen(policy))
        .map_err(|faults| faults.iter().map(|fault| format!("spec.{fault}")).collect::<Vec<_>>())
        .and_then(|engine| trials(&engine, &policy.spec.tests).map_err(|why| vec![why]));
    match tried {
        Err(faults) => {
            let lines = faults.iter().map(|fault| format!("BAD   {name}: {fault}")).collect();
            (faults.len(), lines)
        }
        Ok(tried) => {
            let mut lines = vec![format!("ok    {name}: {} rules", policy.spec.rules.len())];
            lines.extend(tried.iter().map(|trial| line(&name, trial)));
            (tried.iter().filter(|trial| !trial.passed()).count(), lines)
        }
    }
}

fn line(name: &str, trial: &Trial) -> String {
    let mark = if trial.passed() { "ok   " } else { "FAIL " };
    format!("{mark} {name}: {trial}")
}

/// As a plan would hold it.
fn frozen(policy: &ApprovalPolicy) -> PlanPolicy {
    let identity = Identity {
        name: policy.metadata.name.clone().unwrap_or_default(),
        uid: policy.metadata.uid.clone().unwrap_or_default(),
        generation: policy.metadata.generation.unwrap_or_default(),
    };
    freeze(identity, &policy.spec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const POLICY: &str = "
apiVersion: belay.dev/v1alpha1
kind: ApprovalPolicy
metadata: {name: careful}
spec:
  rules:
  - {name: reads, effects: [None], action: Allow}
  - {name: no-force, tools: [github], when: 'has(args.force) && args.force', action: Deny}
  tests:
  - {call: {tool: github, operation: list, effects: None}, expect: Allow}
  - {call: {tool: github, operation: push, args: {force: true}}, expect: Deny}
";

    fn report(yaml: &str) -> (usize, String) {
        let mut documents = Documents::default();
        documents.take(std::path::Path::new("policy.yaml"), yaml);
        let report = check(&documents);
        (report.faults, report.lines.join("\n"))
    }

    #[test]
    fn a_policy_that_is_well_says_so_test_by_test() {
        let expected = "ok    careful: 2 rules\n\
                        ok    careful: tests[0] github/list: Allow by reads\n\
                        ok    careful: tests[1] github/push: Deny by no-force\n\
                        1 policies, 2 tests: all is well";
        assert_eq!(report(POLICY), (0, expected.to_owned()));
    }

    #[test]
    fn a_test_that_fails_says_what_it_got() {
        let (faults, lines) = report(&POLICY.replace("expect: Deny", "expect: Ask"));
        assert_eq!(faults, 1);
        assert!(lines.contains("FAIL  careful: tests[1] github/push: expected Ask, got Deny by no-force"), "{lines}");
    }

    #[test]
    fn a_rule_that_cannot_be_used_is_pointed_at() {
        let (faults, lines) = report(&POLICY.replace("args.force)", "arg.force)"));
        assert_eq!(faults, 1);
        assert!(lines.contains("BAD   careful: spec.rules[1] no-force: when: unknown name arg"), "{lines}");
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_here() {
        let table = [
            ("action: Deny}", "action: Deny, ask: {}}", "spec.rules[1]: ask is for action Ask"),
            ("action: Allow}", "action: Allow, reason: x}", "spec.rules[0]: reason is for action Deny"),
            ("name: careful", "name: default", "the name default belongs to the built-in policy"),
            ("name: no-force", "name: reads", "spec.rules: the name reads stands twice"),
            ("name: no-force", "name: No Force", "spec.rules[1].name: 'No Force' is not like"),
            ("action: Deny}", "action: Refuse}", "spec.rules[1].action: 'Refuse' is none of Allow, Ask, Deny"),
            ("tools: [github]", "tool: [github]", "spec.rules[1].tool: there is no such field"),
            ("expect: Deny", "expects: Deny", "spec.tests[1].expects: there is no such field"),
            ("action: Deny}", "action: Ask, ask: {quorum: 9}}", "spec.rules[1].ask.quorum: 9 is more than 8"),
            ("action: Deny}", "action: Ask, ask: {expiresAfterSeconds: 29}}", "29 is less than 30"),
            ("rules:", "otherwise: Allow\n  rules:", "spec.otherwise: 'Allow' is none of "),
        ];
        for (from, to, words) in table {
            let (faults, lines) = report(&POLICY.replacen(from, to, 1));
            assert!(faults > 0 && lines.contains(words), "{to}: {lines}");
        }
    }

    #[test]
    fn names_that_the_files_do_not_hold_are_a_warning_and_no_fault() {
        let tool = "---\napiVersion: belay.dev/v1alpha1\nkind: Tool\nmetadata: {name: gitlab}\nspec: {mcp: {url: 'http://x/'}}\n";
        let agent = "---\napiVersion: belay.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}\nspec: {modelRef: {name: m}, policyRefs: [{name: carful}]}\n";
        let (faults, lines) = report(&format!("{POLICY}{tool}{agent}"));
        assert_eq!(faults, 0, "{lines}");
        assert!(
            lines.contains("warn  careful: spec.rules[1] no-force: there is no Tool github in these files"),
            "{lines}"
        );
        assert!(lines.contains("warn  Agent a: spec.policyRefs names carful, which is not in these files"), "{lines}");
    }

    /// The docs promise eleven recipes, and that they are run.
    #[test]
    fn every_policy_in_the_docs_is_well_and_each_of_its_rules_decides_a_test() {
        let docs = include_str!("../../docs/policies.md");
        let mut documents = Documents::default();
        for block in docs.split("```yaml\n").skip(1) {
            documents.take(std::path::Path::new("docs/policies.md"), block.split("```").next().unwrap());
        }
        let report = check(&documents);
        assert_eq!(report.faults, 0, "{}", report.lines.join("\n"));
        assert_eq!(documents.policies.len(), 12);
        for policy in &documents.policies {
            let engine = Engine::compile(&frozen(policy)).unwrap();
            let deciding: Vec<String> =
                trials(&engine, &policy.spec.tests).unwrap().into_iter().filter_map(|trial| trial.rule).collect();
            for rule in &policy.spec.rules {
                let by_spend = policy.metadata.name.as_deref() == Some("long-runs") && rule.name == "long";
                let tried = deciding.iter().any(|rules| rules.split(", ").any(|name| name == rule.name));
                // A test's run has used nothing.
                assert!(tried || by_spend, "{:?}: no test is decided by {}", policy.metadata.name, rule.name);
            }
        }
    }
}
