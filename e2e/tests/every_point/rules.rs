//! The admission rules as they are installed: objects that the operator compares with what it ships, and the one
//! answer that it looks for when it sends a forged decision. None of them is evaluated here.

use serde_json::{Value, json};

use super::api::Key;

pub fn objects() -> Vec<(Key, Value)> {
    let documents = belay_crds::admission::FILES.iter().flat_map(|file| file.split("\n---\n"));
    let object = |document: &str| {
        let mut object: Value = serde_saphyr::from_str(document).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let plural = match object["kind"].as_str().unwrap() {
            "ValidatingAdmissionPolicy" => "validatingadmissionpolicies",
            _ => "validatingadmissionpolicybindings",
        };
        object["metadata"]["uid"] = json!(format!("uid-{plural}-{name}"));
        object["metadata"]["generation"] = json!(1);
        (Key::new(plural, "", &name), object)
    };
    documents.map(object).collect()
}

/// How the API server refuses what the operator must not be able to do.
pub fn refusal() -> Value {
    let message = "approvals.belay.dev \"a\" is forbidden: ValidatingAdmissionPolicy 'belay-approvals' with binding \
                   'belay-approvals' denied request: a decision is signed by the one who makes it";
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": 422, "reason": "Invalid", "message": message,
    })
}
