//! What ends a run: a last answer, a failure that nobody retries, a limit of the plan.

use belay_protocol::event::{
    EndReason, Event, Failure, FailureReason, Finish, Item, Limit, Listing, ModelResponse, Outcome, RunEnd,
};
use belay_protocol::fold::RunState;
use belay_protocol::{LISTINGS_PER_EPOCH_MAX, MISFITS_MAX};

use super::Room;

/// The events that refuse a model request, if a limit of the plan does.
pub fn before_request(run: &RunState, reserved_tokens: u64) -> Option<Vec<Event>> {
    let plan = run.plan.as_ref()?;
    let limits = plan.limits;
    let used = run.tokens_spent();
    let (limit, reason, message) = if run.steps >= limits.steps {
        let message = format!("spec.limits.steps is {}, and that many model requests were answered", limits.steps);
        (Limit::Steps, EndReason::StepsExceeded, message)
    } else if let Some(tokens) =
        limits.tokens.filter(|tokens| used.saturating_add(reserved_tokens) > *tokens || used >= *tokens)
    {
        let message =
            format!("spec.limits.tokens is {tokens}: {used} are used and the next request may take {reserved_tokens}");
        (Limit::Tokens, EndReason::TokensExceeded, message)
    } else if let Some(budget) = limits.cost_micro_usd.filter(|budget| run.cost_spent().micro_usd() >= *budget) {
        let message =
            format!("spec.limits.costUSD is {}, and {} is spent", usd(budget), usd(run.cost_spent().micro_usd()));
        (Limit::CostUSD, EndReason::CostExceeded, message)
    } else {
        return None;
    };
    let (agent, name) = (&plan.agent.name, &plan.run.name);
    let below = if run.children_total == 0 { "" } else { ", runs that it started included" };
    let message =
        format!("{message}{below}. Raise it in Agent {agent} or, where AgentRun {name} sets a tighter one, there");
    Some(vec![Event::LimitReached { limit }, failed(reason, message)])
}

/// The end of a run that has written as much as one run may.
pub fn without_room(run: &RunState, room: Room) -> Option<Vec<Event>> {
    let Room::Used { bytes_max } = room else { return None };
    let name = run.plan.as_ref().map(|plan| plan.run.name.clone()).unwrap_or_default();
    let message = format!(
        "AgentRun {name} wrote {bytes_max} bytes into the journal, which is as much as one run may: raise \
         BELAY_RUN_JOURNAL_MEBIBYTES of the operator, or let the Agent's tools answer with less"
    );
    Some(vec![Event::LimitReached { limit: Limit::JournalBytes }, failed(EndReason::JournalExceeded, message)])
}

/// The end that follows from `event`, if one does.
pub fn after(run: &RunState, event: &Event) -> Option<Vec<Event>> {
    end_after(run, event).map(|end| vec![end])
}

fn end_after(run: &RunState, event: &Event) -> Option<Event> {
    match event {
        Event::ToolsListed { tool, listing: Listing::Listed(_) }
            if run.listed.get(tool).is_some_and(|listed| *listed >= LISTINGS_PER_EPOCH_MAX) =>
        {
            let message = format!(
                "the runner listed Tool {tool} more than {LISTINGS_PER_EPOCH_MAX} times in one pod, which Belay's own \
                 never does: find out what runs in that pod before you start the Agent again"
            );
            Some(failed(EndReason::JournalExceeded, message))
        }
        Event::ToolsListed { listing: Listing::Failed(failure), .. } => {
            Some(failed(end_reason(failure, EndReason::ToolUnavailable), failure.message.clone()))
        }
        Event::ModelFailed { failure, .. } if !failure.retrying => {
            Some(failed(end_reason(failure, EndReason::ModelFailed), failure.message.clone()))
        }
        Event::ModelResponded { response, .. } => last_words(run, response),
        _ => None,
    }
}

fn last_words(run: &RunState, response: &ModelResponse) -> Option<Event> {
    let asks = response.items.iter().any(|item| match item {
        Item::ToolCall { .. } => true,
        Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => false,
    });
    if asks {
        return None;
    }
    let model = run.plan.as_ref().map(|plan| plan.model_after(run.models_given_up).name.clone()).unwrap_or_default();
    if let Some(misfit) = &response.misfit {
        let agent = run.plan.as_ref().map(|plan| plan.agent.name.clone()).unwrap_or_default();
        let message = format!(
            "{MISFITS_MAX} answers of Model {model} in a row did not fit spec.outputSchema of Agent {agent}; the last: \
             {misfit} Ask for less in the schema, say in the instructions what is wanted, or use another model"
        );
        return (run.misfits + 1 >= MISFITS_MAX).then(|| failed(EndReason::OutputInvalid, message));
    }
    Some(match response.finish {
        Finish::Stop | Finish::ToolCalls => Event::RunEnded {
            end: RunEnd { outcome: Outcome::Succeeded, reason: EndReason::Completed, message: String::new() },
        },
        Finish::Length => failed(
            EndReason::ModelIncomplete,
            format!("the answer of Model {model} was cut at its output limit: raise spec.maxOutputTokens"),
        ),
        Finish::ContentFilter => failed(
            EndReason::ModelIncomplete,
            format!("the provider of Model {model} withheld the answer (content filter)"),
        ),
    })
}

fn end_reason(failure: &Failure, otherwise: EndReason) -> EndReason {
    match failure.reason {
        FailureReason::CredentialMissing
        | FailureReason::CredentialEmpty
        | FailureReason::CredentialTooLarge
        | FailureReason::HostNotAllowed => EndReason::CredentialUnavailable,
        FailureReason::Unreachable
        | FailureReason::Unauthorized
        | FailureReason::RateLimited
        | FailureReason::ServerError
        | FailureReason::BadRequest
        | FailureReason::TimedOut
        | FailureReason::Truncated
        | FailureReason::Malformed
        | FailureReason::TooLarge
        | FailureReason::ScriptExhausted
        | FailureReason::Scripted
        | FailureReason::DestinationNotAllowed
        | FailureReason::Interrupted
        | FailureReason::Withheld
        | FailureReason::DocumentMissing
        | FailureReason::DefinitionsInvalid
        | FailureReason::CaBundleUnusable
        | FailureReason::ContextExceeded => otherwise,
    }
}

fn failed(reason: EndReason, message: String) -> Event {
    Event::RunEnded { end: RunEnd { outcome: Outcome::Failed, reason, message } }
}

/// Micro-USD as dollars.
fn usd(micro: u64) -> String {
    let text = format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
