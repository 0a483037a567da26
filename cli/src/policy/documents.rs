//! What YAML files hold of what concerns policies.

use std::path::{Path, PathBuf};

use belay_crds::{Agent, ApprovalPolicy, Credential, NameRef, Tool};
use serde_json::Value;

use super::schema;
use crate::exit::CliError;

#[derive(Default)]
pub struct Documents {
    pub policies: Vec<ApprovalPolicy>,
    tools: Vec<Tool>,
    agents: Vec<Agent>,
    credentials: Vec<Credential>,
    /// What the API server would not take, by file.
    pub malformed: Vec<(PathBuf, String)>,
}

impl Documents {
    /// Reads all files.
    ///
    /// # Errors
    /// A usage error where a file cannot be read or none of them holds an ApprovalPolicy.
    pub fn read(files: &[PathBuf]) -> Result<Self, CliError> {
        let mut documents = Self::default();
        for file in files {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))?;
            documents.take(file, &text);
        }
        if documents.policies.is_empty() && documents.malformed.is_empty() {
            return Err(CliError::Usage("these files hold no ApprovalPolicy".to_owned()));
        }
        Ok(documents)
    }

    /// Documents of other kinds are none of its business.
    pub fn take(&mut self, file: &Path, text: &str) {
        match serde_saphyr::from_multiple::<Value>(text) {
            Ok(documents) => documents.into_iter().for_each(|document| self.take_one(file, document)),
            Err(error) => self.malformed.push((file.to_owned(), format!("not YAML: {error}"))),
        }
    }

    fn take_one(&mut self, file: &Path, document: Value) {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let ours = document.get("apiVersion").and_then(Value::as_str) == Some("belay.dev/v1alpha1");
        if !ours || !["ApprovalPolicy", "Tool", "Agent", "Credential"].contains(&kind.as_str()) {
            return;
        }
        let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let complaints = schema::complaints(&kind, &document);
        let refused = !complaints.is_empty();
        self.malformed.extend(complaints.into_iter().map(|words| (file.to_owned(), format!("{kind} {name}: {words}"))));
        if refused {
            return;
        }
        let taken = match kind.as_str() {
            "ApprovalPolicy" => serde_json::from_value(document).map(|it| self.policies.push(it)),
            "Tool" => serde_json::from_value(document).map(|it| self.tools.push(it)),
            "Agent" => serde_json::from_value(document).map(|it| self.agents.push(it)),
            _ => serde_json::from_value(document).map(|it| self.credentials.push(it)), // a Credential: asked above
        };
        if let Err(error) = taken {
            self.malformed.push((file.to_owned(), format!("{kind} {name}: {error}")));
        }
    }

    /// Tools that the rules name, where there are Tools to look among.
    pub fn unknown_names(&self, policy: &ApprovalPolicy) -> Vec<String> {
        if self.tools.is_empty() {
            return Vec::new();
        }
        let subject = policy.metadata.name.as_deref().unwrap_or_default();
        let is_there = |name: &String| self.tools.iter().any(|tool| tool.metadata.name.as_ref() == Some(name));
        let rules = policy.spec.rules.iter().enumerate();
        rules
            .flat_map(|(index, rule)| {
                let unknown = rule.tools.iter().filter(|name| !is_there(name));
                unknown.map(move |name| {
                    format!("{subject}: spec.rules[{index}] {}: there is no Tool {name} in these files", rule.name)
                })
            })
            .collect()
    }

    /// Policies that an Agent, a Tool or a Credential names and no file holds.
    pub fn missing_policies(&self) -> Vec<String> {
        let is_there = |name: &str| self.policies.iter().any(|policy| policy.metadata.name.as_deref() == Some(name));
        let missing = |kind: &'static str, object: &Option<String>, references: &[NameRef]| -> Vec<String> {
            let object = object.clone().unwrap_or_default();
            let absent = references.iter().filter(|reference| !is_there(&reference.name));
            absent
                .map(|it| format!("{kind} {object}: spec.policyRefs names {}, which is not in these files", it.name))
                .collect()
        };
        let agents = self.agents.iter().flat_map(|it| missing("Agent", &it.metadata.name, &it.spec.policy_refs));
        let tools = self.tools.iter().flat_map(|it| missing("Tool", &it.metadata.name, &it.spec.policy_refs));
        let credentials = self.credentials.iter();
        let credentials = credentials.flat_map(|it| missing("Credential", &it.metadata.name, &it.spec.policy_refs));
        agents.chain(tools).chain(credentials).collect()
    }
}
