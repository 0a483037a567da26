//! Engines kept ready, by the digest of their policy: a run that waits for a week and comes back finds its own.

use std::collections::HashMap;
use std::sync::Arc;

use belay_policy::{Engine, Voice, policy_digest};
use belay_protocol::Digest;
use belay_protocol::plan::PlanPolicy;
use parking_lot::Mutex;

use super::Sought;

/// Generations that are kept ready; beyond it all are made anew as they are asked.
const ENGINES_MAX: usize = 1024;

#[derive(Default)]
pub struct Engines(Mutex<HashMap<Digest, Result<Arc<Engine>, String>>>);

impl Engines {
    /// The policy as it is asked. Blocks where it was not asked before.
    pub fn voice(&self, sought: &Sought) -> Voice {
        let (policy, voice): (_, fn(Arc<Engine>) -> Voice) = match sought {
            Sought::Plan(policy) => (policy, Voice::Plan),
            Sought::Above(policy) => (policy, Voice::Above),
            Sought::Current(policy) => (policy, Voice::Current),
            Sought::Absent(name) => {
                return Voice::absent(name);
            }
        };
        match self.ready(policy) {
            Ok(engine) => voice(engine),
            Err(why) => Voice::unusable(policy, why),
        }
    }

    /// Only what was accepted before comes here: a rule that cannot be used now is one of an older version.
    fn ready(&self, policy: &PlanPolicy) -> Result<Arc<Engine>, String> {
        let digest = policy_digest(policy).map_err(|error| error.to_string())?;
        if let Some(known) = self.0.lock().get(&digest) {
            return known.clone();
        }
        let made = Engine::compile(policy).map(Arc::new).map_err(|faults| {
            faults.first().map_or_else(|| "its rules cannot be used".to_owned(), ToString::to_string)
        });
        let mut engines = self.0.lock();
        if engines.len() >= ENGINES_MAX {
            engines.clear();
        }
        engines.insert(digest, made.clone());
        made
    }
}
