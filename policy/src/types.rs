//! The types that a rule's expressions can have, and the functions that it may call.

use crate::source::MATCHES;

/// What is known of a value before there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Anything: a field of the arguments.
    Dyn,
    Bool,
    Int,
    Double,
    Text,
    Null,
    List,
    Map,
    /// A variable whose fields are known.
    Record(&'static [(&'static str, Type)]),
}

/// What a rule can ask about.
pub const VARIABLES: &[(&str, Type)] = &[
    ("tool", Type::Text),
    ("operation", Type::Text),
    ("args", Type::Map),
    ("agent", Type::Record(&[("name", Type::Text), ("namespace", Type::Text)])),
    ("run", Type::Record(&[("name", Type::Text), ("requestedBy", Type::Text)])),
    ("effects", Type::Text),
    ("spend", Type::Record(&[("steps", Type::Int), ("tokens", Type::Int), ("costMicroUSD", Type::Int)])),
];

/// What a pattern of a grant can ask about.
pub const PATTERN_VARIABLES: &[(&str, Type)] = &[("args", Type::Map)];

impl Type {
    pub fn word(self) -> &'static str {
        match self {
            Self::Dyn => "anything",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Double => "double",
            Self::Text => "string",
            Self::Null => "null",
            Self::List => "list",
            Self::Map | Self::Record(_) => "map",
        }
    }

    pub fn may_be_one_of(self, types: &[Type]) -> bool {
        self == Self::Dyn || types.iter().any(|other| *other == Self::Dyn || self.word() == other.word())
    }

    /// Whether `==` between both can ever be true.
    pub fn may_equal(self, other: Type) -> bool {
        let numeric = [Type::Int, Type::Double];
        let one = |it: Type| it == Self::Dyn;
        one(self) || one(other) || self.word() == other.word() || (numeric.contains(&self) && numeric.contains(&other))
    }

    pub fn may_be_ordered_with(self, other: Type) -> bool {
        let ordered = [Type::Int, Type::Double, Type::Text];
        self.may_equal(other) && self.may_be_one_of(&ordered) && other.may_be_one_of(&ordered)
    }

    /// What either of two branches comes to.
    pub fn or(self, other: Type) -> Type {
        if self == other { self } else { Self::Dyn }
    }
}

/// A function that a rule may call.
pub struct Signature {
    pub name: &'static str,
    /// What it is called on; absent for a function that is not called on anything.
    pub on: Option<&'static [Type]>,
    pub takes: &'static [&'static [Type]],
    pub gives: Type,
}

impl Signature {
    /// As a rule writes it.
    pub fn word(&self) -> &'static str {
        self.name.trim_start_matches('@')
    }
}

const TEXT: &[Type] = &[Type::Text];
const SIZED: &[Type] = &[Type::Text, Type::List, Type::Map];
const SCALAR: &[Type] = &[Type::Int, Type::Double, Type::Text];
const PRINTABLE: &[Type] = &[Type::Int, Type::Double, Type::Text, Type::Bool];

/// Every one of these gives no more than it takes: no call can make a value grow.
pub const FUNCTIONS: &[Signature] = &[
    Signature { name: "size", on: Some(SIZED), takes: &[], gives: Type::Int },
    Signature { name: "size", on: None, takes: &[SIZED], gives: Type::Int },
    Signature { name: "startsWith", on: Some(TEXT), takes: &[TEXT], gives: Type::Bool },
    Signature { name: "endsWith", on: Some(TEXT), takes: &[TEXT], gives: Type::Bool },
    Signature { name: "contains", on: Some(TEXT), takes: &[TEXT], gives: Type::Bool },
    Signature { name: MATCHES, on: Some(TEXT), takes: &[TEXT], gives: Type::Bool },
    Signature { name: "lowerAscii", on: Some(TEXT), takes: &[], gives: Type::Text },
    Signature { name: "upperAscii", on: Some(TEXT), takes: &[], gives: Type::Text },
    Signature { name: "trim", on: Some(TEXT), takes: &[], gives: Type::Text },
    Signature { name: "int", on: None, takes: &[SCALAR], gives: Type::Int },
    Signature { name: "double", on: None, takes: &[SCALAR], gives: Type::Double },
    Signature { name: "string", on: None, takes: &[PRINTABLE], gives: Type::Text },
];

/// The names of all, each once.
pub fn function_names() -> String {
    let mut names: Vec<&str> = FUNCTIONS.iter().map(Signature::word).collect();
    names.dedup();
    names.join(", ")
}
