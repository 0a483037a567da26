//! The admission rules that come with these kinds, as `manifests/admission` ships them, and how installed ones differ
//! from them. Pure: whoever has read the installed ones hands them in.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec,
};
use kube::ResourceExt;

/// The policy and the binding that say what a decision on an Approval has to be.
pub const APPROVALS: &str = "belay-approvals";
/// The policy, and its binding, by which only the operator writes what belongs to it.
pub const STATUS: &str = "belay-status";
/// What puts the rules back where the manifests are at hand.
pub const RESTORE: &str = "kubectl apply --server-side --force-conflicts -k manifests/admission";

/// Every file of `manifests/admission`.
pub const FILES: [&str; 7] = [
    include_str!("../../manifests/admission/agent-tools.yaml"),
    include_str!("../../manifests/admission/approval-grants.yaml"),
    include_str!("../../manifests/admission/approvals.yaml"),
    include_str!("../../manifests/admission/read-grants.yaml"),
    include_str!("../../manifests/admission/references.yaml"),
    include_str!("../../manifests/admission/runner-pods.yaml"),
    include_str!("../../manifests/admission/status.yaml"),
];
/// How the files name the operator's account, up to its name.
const ACCOUNT: &str = "system:serviceaccount:belay-system:";

/// The rules of one installation.
#[derive(Clone, Debug)]
pub struct Rules {
    policies: BTreeMap<String, ValidatingAdmissionPolicySpec>,
    bindings: BTreeMap<String, ValidatingAdmissionPolicyBindingSpec>,
}

/// The files could not be read as what they are; a test keeps them readable.
#[derive(Debug, thiserror::Error)]
#[error("the admission rules of this build cannot be read: {0}")]
pub struct Unreadable(String);

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleKind {
    Policy,
    Binding,
}

impl RuleKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "ValidatingAdmissionPolicy",
            Self::Binding => "ValidatingAdmissionPolicyBinding",
        }
    }
}

/// What is wrong with an installed rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Missing,
    /// Its spec is not the one that is shipped.
    Differs,
}

/// One rule that is not installed as it is shipped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub kind: RuleKind,
    pub name: String,
    pub fault: Fault,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Missing => "is missing",
            Fault::Differs => "is not as it was shipped",
        };
        write!(f, "{} {} {fault}", self.kind.as_str(), self.name)
    }
}

impl Rules {
    /// The rules as they are installed with an operator in `namespace`: they name its account.
    ///
    /// # Errors
    /// A file of this build is not what it should be.
    pub fn shipped(namespace: &str) -> Result<Self, Unreadable> {
        let mut rules = Self { policies: BTreeMap::new(), bindings: BTreeMap::new() };
        let account = format!("system:serviceaccount:{namespace}:");
        for file in FILES {
            for document in file.replace(ACCOUNT, &account).split("\n---\n") {
                rules.add(document).map_err(Unreadable)?;
            }
        }
        Ok(rules)
    }

    fn add(&mut self, document: &str) -> Result<(), String> {
        let value: serde_json::Value = serde_saphyr::from_str(document).map_err(|error| error.to_string())?;
        if value.get("kind").and_then(serde_json::Value::as_str) == Some(RuleKind::Binding.as_str()) {
            let binding: ValidatingAdmissionPolicyBinding =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            self.bindings.insert(binding.name_any(), binding_spec(&binding));
        } else {
            let policy: ValidatingAdmissionPolicy = serde_json::from_value(value).map_err(|error| error.to_string())?;
            self.policies.insert(policy.name_any(), policy_spec(&policy));
        }
        Ok(())
    }

    /// The names under which both kinds are installed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.policies.keys().map(String::as_str)
    }

    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.policies.contains_key(name)
    }

    /// How the policy of that name is wrong, if it is.
    #[must_use]
    pub fn policy(&self, name: &str, installed: Option<&ValidatingAdmissionPolicy>) -> Option<Difference> {
        let same = |installed: &ValidatingAdmissionPolicy| self.policies.get(name) == Some(&policy_spec(installed));
        difference(RuleKind::Policy, name, installed.map(same))
    }

    /// How the binding of that name is wrong, if it is.
    #[must_use]
    pub fn binding(&self, name: &str, installed: Option<&ValidatingAdmissionPolicyBinding>) -> Option<Difference> {
        let same =
            |installed: &ValidatingAdmissionPolicyBinding| self.bindings.get(name) == Some(&binding_spec(installed));
        difference(RuleKind::Binding, name, installed.map(same))
    }

    /// All that is wrong, among whatever else is installed.
    pub fn differences<'a>(
        &self,
        policies: impl IntoIterator<Item = &'a ValidatingAdmissionPolicy>,
        bindings: impl IntoIterator<Item = &'a ValidatingAdmissionPolicyBinding>,
    ) -> Vec<Difference> {
        let policies: BTreeMap<_, _> = policies.into_iter().map(|policy| (policy.name_any(), policy)).collect();
        let bindings: BTreeMap<_, _> = bindings.into_iter().map(|binding| (binding.name_any(), binding)).collect();
        let wrong = self.policies.keys().filter_map(|name| self.policy(name, policies.get(name).copied()));
        let unbound = self.bindings.keys().filter_map(|name| self.binding(name, bindings.get(name).copied()));
        wrong.chain(unbound).collect()
    }
}

fn difference(kind: RuleKind, name: &str, same: Option<bool>) -> Option<Difference> {
    let fault = match same {
        Some(true) => return None,
        Some(false) => Fault::Differs,
        None => Fault::Missing,
    };
    Some(Difference { kind, name: name.to_owned(), fault })
}

/// With the defaults that the API server writes into what it keeps.
fn policy_spec(policy: &ValidatingAdmissionPolicy) -> ValidatingAdmissionPolicySpec {
    let mut spec = policy.spec.clone().unwrap_or_default();
    spec.failure_policy.get_or_insert_with(|| "Fail".to_owned());
    spec.match_constraints.iter_mut().for_each(fill);
    spec
}

fn binding_spec(binding: &ValidatingAdmissionPolicyBinding) -> ValidatingAdmissionPolicyBindingSpec {
    let mut spec = binding.spec.clone().unwrap_or_default();
    spec.match_resources.iter_mut().for_each(fill);
    spec
}

fn fill(resources: &mut MatchResources) {
    resources.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    let rules = resources.resource_rules.iter_mut().chain(resources.exclude_resource_rules.iter_mut());
    for rule in rules.flatten() {
        rule.scope.get_or_insert_with(|| "*".to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    /// The installed objects, as an API server would return them: with its defaults, and with others' labels.
    fn installed(namespace: &str) -> (Vec<Value>, Vec<Value>) {
        let (mut policies, mut bindings) = (Vec::new(), Vec::new());
        for file in FILES {
            for document in file.replace("belay-system:", &format!("{namespace}:")).split("\n---\n") {
                let mut object: Value = serde_saphyr::from_str(document).unwrap();
                object["metadata"]["uid"] = json!("u");
                object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
                if object["kind"] == "ValidatingAdmissionPolicyBinding" {
                    bindings.push(object);
                    continue;
                }
                let constraints = &mut object["spec"]["matchConstraints"];
                constraints["matchPolicy"] = json!("Equivalent");
                constraints["namespaceSelector"] = json!({});
                constraints["objectSelector"] = json!({});
                constraints["resourceRules"][0]["scope"] = json!("*");
                policies.push(object);
            }
        }
        (policies, bindings)
    }

    fn differences(namespace: &str, policies: &[Value], bindings: &[Value]) -> Vec<String> {
        let policies: Vec<ValidatingAdmissionPolicy> =
            policies.iter().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
        let bindings: Vec<ValidatingAdmissionPolicyBinding> =
            bindings.iter().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
        let rules = Rules::shipped(namespace).unwrap();
        rules.differences(&policies, &bindings).iter().map(ToString::to_string).collect()
    }

    fn named<'a>(objects: &'a mut [Value], name: &str) -> &'a mut Value {
        objects.iter_mut().find(|object| object["metadata"]["name"] == name).unwrap()
    }

    #[test]
    fn every_file_of_the_folder_is_shipped_and_every_policy_is_bound() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/admission");
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|it| it == "yaml"));
        let mut texts: Vec<String> = files
            .filter(|path| path.file_name().is_some_and(|name| name != "kustomization.yaml"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        texts.sort();
        let mut shipped = FILES.map(str::to_owned);
        shipped.sort();
        assert_eq!(texts, shipped);
        let rules = Rules::shipped("belay-system").unwrap();
        assert_eq!(rules.names().collect::<Vec<_>>(), rules.bindings.keys().map(String::as_str).collect::<Vec<_>>());
        assert!(rules.holds(APPROVALS) && !rules.holds("someone-elses"));
    }

    #[test]
    fn what_was_applied_by_kustomize_or_helm_is_as_it_was_shipped() {
        for namespace in ["belay-system", "agents"] {
            let (policies, bindings) = installed(namespace);
            assert_eq!(differences(namespace, &policies, &bindings), Vec::<String>::new());
        }
    }

    #[test]
    fn rules_that_name_another_operator_are_not_as_shipped() {
        let (policies, bindings) = installed("elsewhere");
        let found = differences("belay-system", &policies, &bindings);
        assert!(found.contains(&"ValidatingAdmissionPolicy belay-approvals is not as it was shipped".to_owned()));
    }

    #[test]
    fn what_is_missing_unbound_or_loosened_is_named() {
        type Edit = fn(&mut Vec<Value>, &mut Vec<Value>);
        let cases: [(Edit, &str); 7] = [
            (
                |policies, _| policies.retain(|it| it["metadata"]["name"] != APPROVALS),
                "Policy belay-approvals is missing",
            ),
            (
                |_, bindings| bindings.retain(|it| it["metadata"]["name"] != APPROVALS),
                "PolicyBinding belay-approvals is missing",
            ),
            (
                |_, bindings| named(bindings, APPROVALS)["spec"]["validationActions"] = json!(["Audit"]),
                "PolicyBinding belay-approvals is not as it was shipped",
            ),
            (
                |_, bindings| {
                    let selector = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}});
                    named(bindings, APPROVALS)["spec"]["matchResources"] = selector;
                },
                "PolicyBinding belay-approvals is not as it was shipped",
            ),
            (
                |policies, _| named(policies, APPROVALS)["spec"]["failurePolicy"] = json!("Ignore"),
                "Policy belay-approvals is not as it was shipped",
            ),
            (
                |policies, _| {
                    let never = json!({"name": "never", "expression": "false"});
                    named(policies, APPROVALS)["spec"]["matchConditions"].as_array_mut().unwrap().push(never);
                },
                "Policy belay-approvals is not as it was shipped",
            ),
            (
                |policies, _| {
                    let constraints = &mut named(policies, "belay-runner-pods")["spec"]["matchConstraints"];
                    constraints["objectSelector"] = json!({"matchLabels": {"a": "b"}});
                },
                "Policy belay-runner-pods is not as it was shipped",
            ),
        ];
        for (edit, words) in cases {
            let (mut policies, mut bindings) = installed("belay-system");
            edit(&mut policies, &mut bindings);
            let found = differences("belay-system", &policies, &bindings);
            assert_eq!(found, [format!("ValidatingAdmission{words}")]);
        }
    }
}
