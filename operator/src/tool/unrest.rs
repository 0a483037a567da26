//! Servers that change what they offer while people are asked about it: how long the next question waits, so that the number
//! of Approvals is bounded by time. Pure.

use std::time::Duration;

use belay_crds::{ToolStatus, Unrest};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::question::Asked;

/// After the second question in a row that was closed; then it doubles.
const PAUSE_FIRST: Duration = Duration::from_mins(1);
const PAUSE_MOST: Duration = Duration::from_hours(24);
/// Longer than the longest pause: a server that waits for it gets no more questions than one that does not.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(7 * 24);

/// A question was closed undecided, since the server had changed what it offers.
pub fn note(status: &mut ToolStatus, now: Timestamp) {
    let before = status.unrest.take().filter(|unrest| since(unrest, now) < FORGOTTEN_AFTER);
    let questions = before.map_or(0, |unrest| unrest.questions).saturating_add(1);
    status.unrest = Some(Unrest { questions, at: Time(now) });
}

/// What to do instead of asking now.
pub fn quiet(unrest: &Unrest, now: Timestamp) -> Option<Asked> {
    let left = pause(unrest.questions).checked_sub(since(unrest, now)).filter(|left| !left.is_zero())?;
    let (times, at) = (unrest.questions, now.saturating_add(left).map_or_else(|_| String::new(), |at| at.to_string()));
    let why = format!(
        "its server changed what it offers {times} times while people were asked: they are asked again at {at}"
    );
    Some(Asked { again: Some(left), unasked: Some(why) })
}

/// A clock that was set back lets nobody wait longer than the pause.
fn since(unrest: &Unrest, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(unrest.at.0)).unwrap_or_default()
}

fn pause(questions: i32) -> Duration {
    match u32::try_from(questions).unwrap_or_default() {
        0 | 1 => Duration::ZERO,
        more => PAUSE_FIRST.saturating_mul(1 << (more - 2).min(16)).min(PAUSE_MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unrest: &Unrest, after: Duration) -> Timestamp {
        unrest.at.0.saturating_add(after).unwrap_or_default()
    }

    /// A server that changes as soon as it is asked about, for `days`: how many questions it gets.
    fn asked_within(days: u64) -> u64 {
        let mut status = ToolStatus::default();
        let (mut now, mut asked) = (Timestamp::UNIX_EPOCH, 0);
        let end = now.saturating_add(Duration::from_hours(24 * days)).unwrap_or_default();
        while now < end {
            let quiet = status.unrest.as_ref().and_then(|unrest| quiet(unrest, now));
            if let Some(left) = quiet.and_then(|quiet| quiet.again) {
                now = now.saturating_add(left).unwrap_or(end);
            } else {
                asked += 1;
                note(&mut status, now);
            }
        }
        asked
    }

    #[test]
    fn a_server_that_never_rests_gets_so_many_questions_and_no_more() {
        assert_eq!((asked_within(1), asked_within(2), asked_within(30)), (12, 13, 41));
    }

    #[test]
    fn the_first_change_waits_for_nothing_and_a_week_without_one_is_forgotten() {
        let mut status = ToolStatus::default();
        note(&mut status, Timestamp::UNIX_EPOCH);
        let first = status.unrest.clone().unwrap_or_else(|| unreachable!("it was noted"));
        assert_eq!((first.questions, quiet(&first, first.at.0).is_none()), (1, true));
        note(&mut status, at(&first, Duration::from_mins(5)));
        let second = status.unrest.clone().unwrap_or_else(|| unreachable!("it was noted"));
        let waits = quiet(&second, second.at.0).unwrap_or_default();
        assert_eq!((second.questions, waits.again), (2, Some(PAUSE_FIRST)));
        assert!(waits.unasked.unwrap_or_default().contains("2 times while people were asked"));
        assert!(quiet(&second, at(&second, PAUSE_FIRST)).is_none());
        note(&mut status, at(&second, FORGOTTEN_AFTER));
        assert_eq!(status.unrest.map(|unrest| unrest.questions), Some(1));
    }
}
