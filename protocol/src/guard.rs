//! Which admission rules were in force when people were asked. A decision counts only under those very rules.

use serde::{Deserialize, Serialize};

/// The policy that guards decisions and what binds it, as they were right before the Approval was made. Whoever takes
/// one away and puts it back leaves another uid behind; whoever changes it and changes it back, another generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardStamp {
    pub policy: RuleVersion,
    pub binding: RuleVersion,
}

/// One object, and how often its spec was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleVersion {
    pub uid: String,
    pub generation: i64,
}
