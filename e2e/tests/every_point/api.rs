//! What the fake API server keeps: objects by resource, with versions, conflicts and a log that watches follow.
//! Knows of no network. It admits everything, and collects nothing whose owner is gone: nobody deletes a run here. Who may do
//! what is tested on a real one.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::points::Fault;

const FROZEN: Duration = Duration::from_millis(1500);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The plural, as paths spell it.
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub key: Key,
    pub kind: &'static str,
    pub object: Value,
}

/// How watches fare.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// A watch that began under another number is cut.
    pub era: u64,
    pub frozen_until: Option<Instant>,
    /// Versions before this one are too old to watch from.
    pub oldest: u64,
}

/// A refusal as the API server words it.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
}

const NOT_FOUND: Refusal = Refusal { code: 404, reason: "NotFound" };
pub const CONFLICT: Refusal = Refusal { code: 409, reason: "Conflict" };
const EXISTS: Refusal = Refusal { code: 409, reason: "AlreadyExists" };

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Change>,
}

pub struct Api {
    state: Mutex<State>,
    /// The newest version.
    pub newest: watch::Sender<u64>,
    pub weather: watch::Sender<Weather>,
}

impl Key {
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl Default for Api {
    fn default() -> Self {
        let weather = Weather { era: 0, frozen_until: None, oldest: 0 };
        Self { state: Mutex::default(), newest: watch::channel(0).0, weather: watch::channel(weather).0 }
    }
}

impl Api {
    /// Everything that is kept, to begin another world with.
    pub fn snapshot(&self) -> Vec<(Key, Value)> {
        self.state.lock().objects.clone().into_iter().collect()
    }

    pub fn restore(&self, key: Key, object: Value) {
        self.write(&mut self.state.lock(), key, "ADDED", object);
    }

    pub fn get(&self, key: &Key) -> Result<Value, Refusal> {
        self.state.lock().objects.get(key).cloned().ok_or(NOT_FOUND)
    }

    /// Objects of a resource, of one namespace or all, and the version as of which they are listed.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> (u64, Vec<Value>) {
        let state = self.state.lock();
        let wanted =
            |key: &Key| key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace);
        let items = state.objects.iter().filter(|(key, _)| wanted(key)).map(|(_, object)| object.clone()).collect();
        (state.version, items)
    }

    /// The first change of a resource behind `version`.
    pub fn change_after(&self, version: u64, resource: &str, namespace: Option<&str>) -> Option<Change> {
        let state = self.state.lock();
        let wanted = |change: &&Change| {
            change.version > version
                && change.key.resource == resource
                && namespace.is_none_or(|namespace| change.key.namespace == namespace)
        };
        let start = state.log.partition_point(|change| change.version <= version);
        state.log[start..].iter().find(wanted).cloned()
    }

    pub fn create(&self, key: Key, mut object: Value) -> Result<Value, Refusal> {
        let mut state = self.state.lock();
        if state.objects.contains_key(&key) {
            return Err(EXISTS);
        }
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("name".into(), json!(key.name));
        if !key.namespace.is_empty() {
            metadata.insert("namespace".into(), json!(key.namespace));
        }
        metadata.insert("uid".into(), json!(format!("{:032x}", rand::random::<u128>())));
        metadata.insert("generation".into(), json!(1));
        metadata.insert("creationTimestamp".into(), json!(now()));
        Ok(self.write(&mut state, key, "ADDED", object))
    }

    /// PUT: the version must be the one that is kept.
    pub fn replace(&self, key: &Key, object: Value) -> Result<Value, Refusal> {
        let mut state = self.state.lock();
        let held = state.objects.get(key).ok_or(NOT_FOUND)?;
        check(held, &object["metadata"])?;
        Ok(self.write(&mut state, key.clone(), "MODIFIED", object))
    }

    /// Server-side apply of a whole object by its one owner.
    pub fn apply(&self, key: Key, object: Value) -> Value {
        let mut state = self.state.lock();
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.write(&mut state, key, kind, object)
    }

    /// Server-side apply of the whole status by its one owner.
    pub fn apply_status(&self, key: &Key, body: &Value) -> Result<Value, Refusal> {
        let mut state = self.state.lock();
        let held = state.objects.get(key).ok_or(NOT_FOUND)?;
        check(held, &body["metadata"])?;
        if held["status"] == body["status"] {
            return Ok(held.clone());
        }
        let mut object = held.clone();
        object["status"] = body["status"].clone();
        Ok(self.write(&mut state, key.clone(), "MODIFIED", object))
    }

    /// DELETE: a pod is marked and leaves when its kubelet says so; everything else goes at once.
    pub fn delete(&self, key: &Key, preconditions: &Value) -> Result<Value, Refusal> {
        let mut state = self.state.lock();
        let held = state.objects.get(key).ok_or(NOT_FOUND)?.clone();
        check(&held, preconditions)?;
        if key.resource != "pods" {
            return Ok(self.remove(&mut state, key).unwrap());
        }
        if held["metadata"]["deletionTimestamp"].is_string() {
            return Ok(held);
        }
        let mut object = held;
        object["metadata"]["deletionTimestamp"] = json!(now());
        Ok(self.write(&mut state, key.clone(), "MODIFIED", object))
    }

    /// As its kubelet, or a person, changes an object; whether it was there.
    pub fn modify(&self, key: &Key, change: impl FnOnce(&mut Value)) -> bool {
        let mut state = self.state.lock();
        let Some(mut object) = state.objects.get(key).cloned() else { return false };
        change(&mut object);
        self.write(&mut state, key.clone(), "MODIFIED", object);
        true
    }

    /// Takes it away whatever anybody has confirmed.
    pub fn vanish(&self, key: &Key) {
        self.remove(&mut self.state.lock(), key);
    }

    pub fn disturb_watches(&self, fault: Fault) {
        let newest = *self.newest.borrow();
        self.weather.send_modify(|weather| match fault {
            Fault::WatchesFreeze => weather.frozen_until = Some(Instant::now() + FROZEN),
            Fault::WatchesExpire => {
                weather.oldest = newest + 1;
                weather.era += 1;
            }
            _ => weather.era += 1,
        });
    }

    fn remove(&self, state: &mut State, key: &Key) -> Option<Value> {
        let object = state.objects.remove(key)?;
        let object = self.log(state, key.clone(), "DELETED", object);
        Some(object)
    }

    fn write(&self, state: &mut State, key: Key, kind: &'static str, object: Value) -> Value {
        let object = self.log(state, key.clone(), kind, object);
        state.objects.insert(key, object.clone());
        object
    }

    fn log(&self, state: &mut State, key: Key, kind: &'static str, mut object: Value) -> Value {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.log.push(Change { version: state.version, key, kind, object: object.clone() });
        self.newest.send_replace(state.version);
        object
    }
}

/// Uid and version, where given, must be those of the object.
fn check(held: &Value, wanted: &Value) -> Result<(), Refusal> {
    let differs = |field: &str| wanted[field].is_string() && wanted[field] != held["metadata"][field];
    if differs("uid") || differs("resourceVersion") { Err(CONFLICT) } else { Ok(()) }
}

/// As the API server writes it.
pub fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string()
}
