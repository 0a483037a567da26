//! How a person decides, whatever is asked: for which policies a decision of theirs is wanted, what it says, and how it is
//! written. What was shown is what is signed.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use belay_crds::{
    ALLOWS_MAX, Approval, ApprovalPurpose, ApprovalRequest, DECISIONS_MAX, Decision, DecisionAnswer, DecisionVerdict,
    is_person, visible,
};
use belay_protocol::Digest;
use clap::Args;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::arguments::Detail;
use super::difference::difference;
use super::grant::{self, grant_of};
use super::question::{question, standing};
use super::{api, checked_digest, fetch, policies};
use crate::Target;
use crate::can_i::may;
use crate::exit::CliError;
use crate::place::Placed;
use crate::run::whoami;

/// How a decision is made, whatever it says.
#[derive(Args)]
pub struct Manner {
    /// Decide for this policy alone; for all that you may decide for otherwise
    #[arg(long)]
    policy: Option<String>,
    /// Do not ask back
    #[arg(short, long)]
    yes: bool,
    /// Fold nothing away
    #[arg(long)]
    full: bool,
}

/// What is to be decided.
pub struct Wish {
    /// What the Approval has to ask for this to be an answer.
    pub answers: Answers,
    pub verdict: DecisionVerdict,
    pub answer: Option<DecisionAnswer>,
    pub reason: Option<String>,
}

/// What kind of question is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// One that a yes or a no answers.
    Plain,
    /// One of this purpose alone. `words`: the answer in a few, for the question back.
    Only { purpose: ApprovalPurpose, words: &'static str },
}

impl Wish {
    /// Yes or no, with nothing more to say.
    #[must_use]
    pub fn plain(verdict: DecisionVerdict, reason: Option<String>) -> Self {
        Self { answers: Answers::Plain, verdict, answer: None, reason }
    }

    /// In a few words, for the question back; none where it does not answer such a question.
    fn words(&self, purpose: ApprovalPurpose) -> Option<&'static str> {
        match (self.answers, purpose, self.verdict) {
            (Answers::Plain, ApprovalPurpose::Call, DecisionVerdict::Allow) => Some("Allow this call"),
            (Answers::Plain, ApprovalPurpose::Call, DecisionVerdict::Deny) => Some("Deny this call"),
            (Answers::Plain, ApprovalPurpose::Drift, DecisionVerdict::Allow) => {
                Some("Accept what the server offers now")
            }
            (Answers::Plain, ApprovalPurpose::Drift, DecisionVerdict::Deny) => Some("Do not accept it"),
            (Answers::Plain, ApprovalPurpose::Unknown | ApprovalPurpose::Question, _) => None,
            (Answers::Only { purpose, words }, asked, _) => (purpose == asked).then_some(words),
        }
    }
}

/// Who decides.
#[derive(Clone, Debug)]
pub struct Decider {
    pub name: String,
    /// The policies that ask on which they hold the verb.
    pub may: BTreeSet<String>,
}

/// Why nothing can be decided.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("Approval {name} asks something else: use {instead}")]
    AsksSomethingElse { name: String, instead: String },
    #[error("Approval {name} is sealed: it was decided, or is asked no more; see {see}")]
    Sealed { name: String, see: String },
    #[error("Approval {name} expired at {at}: no decision counts any more. The agent is told so")]
    Expired { name: String, at: Timestamp },
    #[error("ApprovalPolicy {policy} did not ask; those that did: {asked}")]
    DidNotAsk { policy: String, asked: String },
    #[error("only people decide, and you are {0}")]
    NoPerson(String),
    #[error(
        "you may not decide this: it needs the verb approve on {resource}.decide.belay.dev {policies}. \
         See {see}, and docs/approvals.md"
    )]
    MayNot { resource: &'static str, policies: String, see: String },
    #[error("you created the run, and {policies} wants others to say yes: ask one of them. You may say no: {instead}")]
    OwnRun { policies: String, instead: String },
    #[error(
        "Approval {name} has no room for another {verdict:?}: it takes {DECISIONS_MAX} decisions, {ALLOWS_MAX} of them \
         Allow, and has {there}. {instead}"
    )]
    Full { name: String, verdict: DecisionVerdict, there: usize, instead: &'static str },
    #[error("you said no already: a Deny beats every Allow and cannot be taken back")]
    SaidNo,
    #[error("the pattern {pattern} cannot be allowed: {why}")]
    Pattern { pattern: String, why: String },
    #[error("ApprovalPolicy {policy} lets people allow {terms}")]
    TooMuch { policy: String, terms: String },
    #[error(
        "none of {0} lets people allow more than the call itself (rules[].ask.grants of an ApprovalPolicy): leave --for-run \
         out"
    )]
    NoGrants(String),
    #[error("you said yes already, and what is written stays: more can be allowed with the next call that is asked")]
    SaidWithout,
    #[error("a reason has at most {REASON_CHARACTERS_MAX} characters, not {0}")]
    LongReason(usize),
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// All decisions of this person with this verdict: those that were there, which their field manager has to repeat,
    /// and the new ones.
    Write { decisions: Vec<Decision>, added: Vec<String> },
    /// They said it for all of these.
    Said { policies: Vec<String> },
}

const REASON_CHARACTERS_MAX: usize = 1024;
const MANAGER_BYTES_MAX: usize = 128;
const DIGEST_CHARACTERS: usize = 16;

/// 1. What is there, and may it still be decided. 2. Who decides, and for which policies. 3. Show it. 4. Ask back.
/// 5. Write, signed with the digest over what was shown.
pub async fn decide(target: &Target, name: &str, wish: &Wish, manner: &Manner) -> Result<ExitCode, CliError> {
    let approval = fetch(target, name).await?;
    let placed = target.placed(name);
    can_be_decided(placed, &approval, wish, Timestamp::now())?;
    let digest = checked_digest(name, &approval.spec.request)?;
    if let Some(grant) = grant_of(wish.answer.as_ref()) {
        grant::check(&approval.spec.request, grant)?;
    }
    let who = decider(target, &approval.spec.request).await?;
    let (decisions, added) = match choose(placed, &approval, &who, wish, manner.policy.as_deref())? {
        Choice::Write { decisions, added } => (decisions, added),
        Choice::Said { policies } => {
            println!("you said so already for {}; nothing was added", visible(&policies.join(", ")));
            print!("{}", standing(&approval, &digest.to_string()));
            return Ok(ExitCode::SUCCESS);
        }
    };
    if !confirmed(target, placed, &approval, &Asking { wish, manner, digest, added: &added }).await? {
        return Err(CliError::Declined);
    }
    let decided = write(target, &approval, &who.name, wish.verdict, decisions).await;
    let decided = decided.map_err(|e| CliError::api(format!("deciding Approval {name}"), e))?;
    println!("approval.belay.dev/{name} decided by {} for {}", visible(&who.name), visible(&added.join(", ")));
    print!("{}", standing(&decided, &digest.to_string()));
    Ok(ExitCode::SUCCESS)
}

/// Whether the Approval asks what `wish` answers, and still takes answers.
pub fn can_be_decided(asked: Placed<'_>, approval: &Approval, wish: &Wish, now: Timestamp) -> Result<(), Refused> {
    let (name, request) = (asked.name.to_owned(), &approval.spec.request);
    if wish.words(request.purpose).is_none() {
        let instead = how(asked, request.purpose);
        return Err(Refused::AsksSomethingElse { name, instead });
    }
    if approval.is_sealed() {
        let see = format!("{} show {name}", asked.place.belay());
        return Err(Refused::Sealed { name, see });
    }
    if now >= request.expires_at.0 {
        return Err(Refused::Expired { name, at: request.expires_at.0 });
    }
    Ok(())
}

/// What to type to decide a question of that kind.
pub fn how(asked: Placed<'_>, purpose: ApprovalPurpose) -> String {
    let (belay, name) = (asked.place.belay(), asked.name);
    match purpose {
        ApprovalPurpose::Call | ApprovalPurpose::Drift => {
            format!("{belay} approve {name}, or {belay} deny {name} --reason WHY")
        }
        ApprovalPurpose::Unknown => format!("{belay} resolve {name} with --happened RESULT, --retry or --end"),
        ApprovalPurpose::Question => {
            format!("{belay} answer {name} with --field NAME=VALUE, --json OBJECT, --opened or --decline")
        }
    }
}

pub async fn decider(target: &Target, request: &ApprovalRequest) -> Result<Decider, CliError> {
    let name = whoami(target).await?.unwrap_or_default();
    let mut may_for = BTreeSet::new();
    for policy in policies(request) {
        if may(target, "approve", request.decided_on(), &policy).await? {
            may_for.insert(policy);
        }
    }
    Ok(Decider { name, may: may_for })
}

/// For which policies `who` has something to add, and the whole list to write.
pub fn choose(
    asked: Placed<'_>,
    approval: &Approval,
    who: &Decider,
    wish: &Wish,
    only: Option<&str>,
) -> Result<Choice, Refused> {
    let request = &approval.spec.request;
    if let Some(long) =
        wish.reason.as_ref().map(|reason| reason.chars().count()).filter(|it| *it > REASON_CHARACTERS_MAX)
    {
        return Err(Refused::LongReason(long));
    }
    if !is_person(&who.name) {
        return Err(Refused::NoPerson(who.name.clone()));
    }
    let own = |verdict: DecisionVerdict| {
        let ours = move |one: &&Decision| one.by == who.name && one.verdict == verdict;
        approval.spec.decisions.iter().filter(ours)
    };
    if wish.verdict == DecisionVerdict::Allow && own(DecisionVerdict::Deny).next().is_some() {
        return Err(Refused::SaidNo);
    }
    let allowed = for_whom(asked, request, who, wish.verdict, only)?;
    let said = |policy: &String| own(wish.verdict).any(|one| one.policy == *policy);
    let mut wanted = allowed.iter().filter(|policy| !said(policy)).peekable();
    if wanted.peek().is_none() {
        let more = grant_of(wish.answer.as_ref()).is_some();
        return if more { Err(Refused::SaidWithout) } else { Ok(Choice::Said { policies: allowed }) };
    }
    let added: Vec<String> = wanted.take(room(approval, wish.verdict)).cloned().collect();
    if added.is_empty() {
        return Err(full(asked.name, approval, wish.verdict));
    }
    let answers = answers(request, wish, &added)?;
    let decision = |(policy, answer): (&String, Option<DecisionAnswer>)| Decision {
        policy: policy.clone(),
        by: who.name.clone(),
        digest: request.digest.clone(),
        verdict: wish.verdict,
        answer,
        reason: wish.reason.clone(),
    };
    let new = added.iter().zip(answers).map(decision);
    Ok(Choice::Write { decisions: own(wish.verdict).cloned().chain(new).collect(), added })
}

/// What is answered for each of `policies`.
fn answers(
    request: &ApprovalRequest,
    wish: &Wish,
    policies: &[String],
) -> Result<Vec<Option<DecisionAnswer>>, Refused> {
    let wanted = policies.iter().filter_map(|policy| request.requirements.iter().find(|one| one.policy == *policy));
    let answers: Result<Vec<_>, _> = wanted.map(|one| grant::answer_for(one, wish.answer.as_ref())).collect();
    let answers = answers?;
    let lost = grant_of(wish.answer.as_ref()).is_some() && answers.iter().all(Option::is_none);
    if lost { Err(Refused::NoGrants(policies.join(", "))) } else { Ok(answers) }
}

/// How many more decisions of that verdict the schema takes.
fn room(approval: &Approval, verdict: DecisionVerdict) -> usize {
    let decisions = &approval.spec.decisions;
    let allows = decisions.iter().filter(|one| one.verdict == DecisionVerdict::Allow).count();
    let left = DECISIONS_MAX.saturating_sub(decisions.len());
    match verdict {
        DecisionVerdict::Allow => left.min(ALLOWS_MAX.saturating_sub(allows)),
        DecisionVerdict::Deny => left,
    }
}

fn full(name: &str, approval: &Approval, verdict: DecisionVerdict) -> Refused {
    let instead = match verdict {
        DecisionVerdict::Allow => "A Deny finds room: then the agent may ask anew",
        // Eight Denies are there at least, and one is enough.
        DecisionVerdict::Deny => "It was denied already",
    };
    Refused::Full { name: name.to_owned(), verdict, there: approval.spec.decisions.len(), instead }
}

/// The policies that ask on which `who` may give that verdict.
fn for_whom(
    placed: Placed<'_>,
    request: &ApprovalRequest,
    who: &Decider,
    verdict: DecisionVerdict,
    only: Option<&str>,
) -> Result<Vec<String>, Refused> {
    let asked: Vec<_> = request.requirements.iter().filter(|one| only.is_none_or(|only| one.policy == only)).collect();
    if asked.is_empty() {
        let policy = only.unwrap_or_default().to_owned();
        return Err(Refused::DidNotAsk { policy, asked: policies(request).join(", ") });
    }
    let names = |of: &[&belay_crds::Requirement]| of.iter().map(|one| one.policy.clone()).collect::<Vec<_>>();
    let (may, may_not): (Vec<_>, Vec<_>) = asked.into_iter().partition(|one| who.may.contains(&one.policy));
    if may.is_empty() {
        let see = format!("{} can-i approve POLICY", placed.place.belay());
        return Err(Refused::MayNot { resource: request.decided_on(), policies: names(&may_not).join(", "), see });
    }
    let excluded = |one: &belay_crds::Requirement| match verdict {
        DecisionVerdict::Allow => request.excludes(one, &who.name),
        DecisionVerdict::Deny => false,
    };
    let (own, free): (Vec<_>, Vec<_>) = may.into_iter().partition(|one| excluded(one));
    if free.is_empty() {
        let instead = format!("{} deny {} --reason WHY", placed.place.belay(), placed.name);
        return Err(Refused::OwnRun { policies: names(&own).join(", "), instead });
    }
    Ok(names(&free))
}

/// Applied to that very object: one that was deleted and made again has another uid.
async fn write(
    target: &Target,
    approval: &Approval,
    user: &str,
    verdict: DecisionVerdict,
    decisions: Vec<Decision>,
) -> Result<Approval, kube::Error> {
    let name = approval.metadata.name.as_deref().unwrap_or_default();
    let body = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
        "metadata": {"name": name, "uid": approval.metadata.uid}, "spec": {"decisions": decisions},
    });
    api(target).patch(name, &PatchParams::apply(&manager(user, verdict)), &Patch::Apply(body)).await
}

/// A field manager for each person and verdict: with one for both, a Deny would take back the Allow before it.
fn manager(user: &str, verdict: DecisionVerdict) -> String {
    let whole = format!("belay-{user}-{verdict:?}");
    let printable = !user.chars().any(char::is_control);
    if whole.len() <= MANAGER_BYTES_MAX && printable {
        return whole;
    }
    format!("belay-{}-{verdict:?}", Digest::of(user.as_bytes()).short(DIGEST_CHARACTERS))
}

/// What is asked back.
struct Asking<'a> {
    wish: &'a Wish,
    manner: &'a Manner,
    digest: Digest,
    added: &'a [String],
}

/// Shows everything, and asks. Only a person at a terminal can be asked back.
async fn confirmed(
    target: &Target,
    asked: Placed<'_>,
    approval: &Approval,
    asking: &Asking<'_>,
) -> Result<bool, CliError> {
    let mut detail = if asking.manner.full { Detail::Full } else { Detail::Folded };
    loop {
        let shown = question(asked, &approval.spec.request, detail);
        print!("{}{}", shown.text, standing(approval, &asking.digest.to_string()));
        if approval.spec.request.purpose == ApprovalPurpose::Call {
            print!("{}", difference(target, approval, detail).await);
        }
        if let Some(grant) = grant_of(asking.wish.answer.as_ref()) {
            print!("{}", grant::shown(&approval.spec.request, grant, asking.added));
        }
        if asking.manner.yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            let words = "there is no terminal to ask back on: add --yes once you have read it";
            return Err(CliError::Usage(words.to_owned()));
        }
        let (fold, more) = match shown.folded_bytes {
            0 => (String::new(), ""),
            bytes => (format!("{bytes} bytes are folded. "), "/f to unfold"),
        };
        let words = asking.wish.words(approval.spec.request.purpose).unwrap_or_default();
        match ask_back(&format!("{fold}{words}, for {}? [y/N{more}] ", asking.added.join(", ")))?.as_str() {
            "y" | "Y" | "yes" => return Ok(true),
            "f" => detail = Detail::Full,
            _ => return Ok(false),
        }
    }
}

fn ask_back(words: &str) -> Result<String, CliError> {
    print!("{words}");
    let mut line = String::new();
    let read = std::io::stdout().flush().and_then(|()| std::io::stdin().read_line(&mut line));
    read.map_err(|e| CliError::Usage(format!("reading the answer: {e}")))?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_crds::{ApprovalStatus, Retry};
    use rstest::rstest;

    use super::super::question::tests::approval;
    use super::*;
    use crate::place::tests::in_team;

    fn decider(name: &str, may: &[&str]) -> Decider {
        Decider { name: name.to_owned(), may: may.iter().map(|policy| (*policy).to_owned()).collect() }
    }

    fn wish(verdict: DecisionVerdict) -> Wish {
        Wish::plain(verdict, Some("why".to_owned()))
    }

    const BOTH: [&str; 2] = ["careful", "owners"];
    const ALLOW: DecisionVerdict = DecisionVerdict::Allow;
    const DENY: DecisionVerdict = DecisionVerdict::Deny;

    /// Policies of what is written, and which of them are new.
    fn chosen(
        decisions: &[(&str, &str, &str)],
        who: &Decider,
        verdict: DecisionVerdict,
    ) -> Result<(String, String), Refused> {
        let approval = approval(&json!({}), decisions);
        match choose(in_team("a"), &approval, who, &wish(verdict), None)? {
            Choice::Said { policies } => Ok((String::new(), format!("said {}", policies.join(",")))),
            Choice::Write { decisions, added } => {
                for one in &decisions {
                    assert_eq!((one.by.as_str(), one.verdict), (who.name.as_str(), verdict));
                    assert_eq!(one.digest, approval.spec.request.digest);
                }
                let policies: Vec<String> = decisions.into_iter().map(|one| one.policy).collect();
                Ok((policies.join(","), added.join(",")))
            }
        }
    }

    #[rstest]
    #[case::for_all_that_one_may(&[], "ada", &BOTH, ALLOW, "careful,owners", "careful,owners")]
    #[case::for_the_one_that_one_may(&[], "ada", &["owners"], ALLOW, "owners", "owners")]
    #[case::the_first_yes_is_repeated(&[("owners", "ada", "Allow")], "ada", &BOTH, ALLOW, "owners,careful", "careful")]
    #[case::others_are_not_repeated(&[("owners", "bob", "Allow")], "ada", &["owners"], ALLOW, "owners", "owners")]
    #[case::no_after_yes(&[("owners", "ada", "Allow")], "ada", &["owners"], DENY, "owners", "owners")]
    #[case::once_is_enough(&[("owners", "ada", "Allow")], "ada", &["owners"], ALLOW, "", "said owners")]
    #[case::the_requester_for_what_does_not_mind(&[], "eve", &BOTH, ALLOW, "owners", "owners")]
    #[case::the_requester_may_say_no(&[], "eve", &BOTH, DENY, "careful,owners", "careful,owners")]
    fn a_decision_is_written_for_each_policy(
        #[case] there: &[(&str, &str, &str)],
        #[case] who: &str,
        #[case] may: &[&str],
        #[case] verdict: DecisionVerdict,
        #[case] written: &str,
        #[case] added: &str,
    ) {
        assert_eq!(chosen(there, &decider(who, may), verdict), Ok((written.to_owned(), added.to_owned())));
    }

    #[test]
    fn who_cannot_decide_is_told_why() {
        let refused = |decisions: &[(&str, &str, &str)], who: &str, may: &[&str], verdict| {
            chosen(decisions, &decider(who, may), verdict).unwrap_err().to_string()
        };
        let none = refused(&[], "ada", &[], ALLOW);
        assert!(none.contains("verb approve on approvalpolicies.decide.belay.dev careful, owners"), "{none}");
        assert!(none.contains("See belay -n team can-i approve POLICY, "), "{none}");
        let own = refused(&[], "eve", &["careful"], ALLOW);
        assert!(own.contains("you created the run, and careful wants others"), "{own}");
        assert!(own.ends_with("You may say no: belay -n team deny a --reason WHY"), "{own}");
        let no = refused(&[("owners", "ada", "Deny")], "ada", &BOTH, ALLOW);
        assert!(no.contains("you said no already"), "{no}");
        let robot = refused(&[], "system:serviceaccount:a:b", &BOTH, DENY);
        assert!(robot.contains("only people decide"), "{robot}");
    }

    #[test]
    fn one_policy_is_decided_alone_and_only_one_that_asked() {
        let approval = approval(&json!({}), &[]);
        let choose = |only| choose(in_team("a"), &approval, &decider("ada", &BOTH), &wish(ALLOW), Some(only));
        assert!(matches!(choose("owners"), Ok(Choice::Write { added, .. }) if added == ["owners"]));
        let asked = "careful, owners".to_owned();
        assert_eq!(choose("other"), Err(Refused::DidNotAsk { policy: "other".to_owned(), asked }));
    }

    #[test]
    fn a_no_finds_room_in_a_list_that_is_nearly_full() {
        let crowd: Vec<String> = (0..31).map(|n| format!("user{n}")).collect();
        let decisions: Vec<(&str, &str, &str)> = crowd.iter().map(|user| ("owners", user.as_str(), "Allow")).collect();
        assert_eq!(chosen(&decisions, &decider("ada", &BOTH), DENY).unwrap().1, "careful");
    }

    #[test]
    fn a_full_list_is_said_to_be_full_and_not_to_hold_what_one_said() {
        let crowd: Vec<String> = (0..32).map(|n| format!("user{n}")).collect();
        let full = |allows: usize, denies: usize| -> Vec<(&str, &str, &str)> {
            let yes = crowd.iter().take(allows).map(|user| ("owners", user.as_str(), "Allow"));
            yes.chain(crowd.iter().take(denies).map(|user| ("owners", user.as_str(), "Deny"))).collect()
        };
        let no_room = |decisions: &[(&str, &str, &str)], verdict| {
            chosen(decisions, &decider("ada", &BOTH), verdict).unwrap_err().to_string()
        };
        let words = no_room(&full(24, 0), ALLOW);
        assert_eq!(
            words,
            "Approval a has no room for another Allow: it takes 32 decisions, 24 of them Allow, and has 24. A Deny finds \
             room: then the agent may ask anew"
        );
        assert_eq!(chosen(&full(24, 0), &decider("ada", &BOTH), DENY).unwrap().1, "careful,owners");
        assert_eq!(chosen(&full(23, 0), &decider("ada", &BOTH), ALLOW).unwrap().1, "careful", "the last one");
        let words = no_room(&full(24, 8), DENY);
        assert!(words.ends_with("and has 32. It was denied already"), "{words}");
        let mut own = full(23, 0);
        own.extend([("owners", "ada", "Allow"), ("careful", "ada", "Allow")]);
        assert_eq!(chosen(&own, &decider("ada", &BOTH), ALLOW).unwrap().1, "said careful,owners");
    }

    #[test]
    fn what_asks_something_else_or_is_over_is_refused() {
        let early: Timestamp = "2026-11-30T09:59:59Z".parse().unwrap();
        let late: Timestamp = "2026-11-30T10:00:00Z".parse().unwrap();
        let open = approval(&json!({}), &[]);
        assert_eq!(can_be_decided(in_team("a"), &open, &wish(ALLOW), early), Ok(()));
        assert_eq!(
            can_be_decided(in_team("a"), &open, &wish(DENY), late),
            Err(Refused::Expired { name: "a".to_owned(), at: late })
        );
        let mut sealed = open.clone();
        sealed.status = Some(ApprovalStatus { sealed: Some(true), ..Default::default() });
        assert_eq!(
            can_be_decided(in_team("a"), &sealed, &wish(ALLOW), early),
            Err(Refused::Sealed { name: "a".to_owned(), see: "belay -n team show a".to_owned() })
        );
        let unknown = approval(&json!({"purpose": "Unknown"}), &[]);
        let words = can_be_decided(in_team("a"), &unknown, &wish(ALLOW), early).unwrap_err().to_string();
        assert_eq!(
            words,
            "Approval a asks something else: use belay -n team resolve a with --happened RESULT, --retry or --end"
        );
        let retry = DecisionAnswer { retry: Some(Retry {}), ..DecisionAnswer::default() };
        let answers = Answers::Only { purpose: ApprovalPurpose::Unknown, words: "go on" };
        let resolve = Wish { answers, answer: Some(retry), ..wish(ALLOW) };
        let drift = super::super::question::tests::drift();
        for open in [&open, &drift] {
            let words = can_be_decided(in_team("a"), open, &resolve, early).unwrap_err().to_string();
            let instead = "belay -n team approve a, or belay -n team deny a --reason WHY";
            assert_eq!(words, format!("Approval a asks something else: use {instead}"));
        }
        assert_eq!(can_be_decided(in_team("a"), &drift, &wish(ALLOW), early), Ok(()));
        assert_eq!(wish(DENY).words(ApprovalPurpose::Drift), Some("Do not accept it"));
    }

    #[test]
    fn a_drift_is_decided_by_who_may_approve_on_the_tool() {
        let drift = super::super::question::tests::drift();
        let refused = choose(in_team("a"), &drift, &decider("ada", &[]), &wish(ALLOW), None).unwrap_err().to_string();
        assert!(refused.contains("verb approve on tools.decide.belay.dev github"), "{refused}");
        let chosen = choose(in_team("a"), &drift, &decider("ada", &["github"]), &wish(ALLOW), None);
        assert!(matches!(chosen, Ok(Choice::Write { added, .. }) if added == ["github"]));
    }

    #[test]
    fn a_reason_is_bounded_before_anything_is_asked() {
        let long = Wish { reason: Some("é".repeat(1025)), ..wish(ALLOW) };
        let refused = choose(in_team("a"), &approval(&json!({}), &[]), &decider("ada", &BOTH), &long, None);
        assert_eq!(refused, Err(Refused::LongReason(1025)));
    }

    #[test]
    fn yes_and_no_of_a_person_have_field_managers_of_their_own_however_long_the_name() {
        assert_eq!(manager("ada@example.com", ALLOW), "belay-ada@example.com-Allow");
        for user in ["a".repeat(500), "é".repeat(80), "a\nb".to_owned()] {
            let (yes, no) = (manager(&user, ALLOW), manager(&user, DENY));
            assert!(yes != no && yes.len() <= MANAGER_BYTES_MAX && no.len() <= MANAGER_BYTES_MAX, "{yes} {no}");
            assert_ne!(yes, manager(&format!("{user}b"), ALLOW));
        }
    }
}
