//! Patterns that people allowed for the rest of a run, asked about a call's arguments.

use std::collections::BTreeSet;

use belay_policy::Pattern;
use serde_json::Value;

use super::Judge;

impl Judge {
    /// Names of the patterns that `args` fit, of pairs of name and condition. What cannot be evaluated, or not in time,
    /// fits nothing.
    pub async fn fitting(&self, namespace: &str, patterns: Vec<(String, String)>, args: Value) -> BTreeSet<String> {
        let fits = move |when: &str| match Pattern::compile_here(when).and_then(|pattern| pattern.fits(&args)) {
            Ok(fits) => fits,
            Err(error) => {
                tracing::debug!(when, error, "a pattern says nothing of a call");
                false
            }
        };
        let evaluation = move || patterns.into_iter().filter(|(_, when)| fits(when)).map(|(name, _)| name).collect();
        self.0.lanes.run(namespace, self.0.deadline, evaluation).await.unwrap_or_default()
    }
}
