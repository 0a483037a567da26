//! The forms that MCP allows: one object of primitive fields. Whatever goes beyond is not shown to people.

use std::fmt;

use serde_json::{Map, Value};

use super::Unfit;

pub const FIELDS_MAX: usize = 32;
pub const CHOICES_MAX: usize = 64;

/// A form as people fill it in.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub title: Option<String>,
    pub description: Option<String>,
    pub required: bool,
    /// What the server proposes. Nobody fills it in but people.
    pub default: Option<Value>,
    pub kind: FieldKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FieldKind {
    Text { least: Option<u64>, most: Option<u64>, format: Option<String> },
    Number { integer: bool, least: Option<f64>, most: Option<f64> },
    Flag,
    One { choices: Vec<Choice> },
    Many { choices: Vec<Choice>, least: Option<u64>, most: Option<u64> },
}

/// A value, and what the server calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub value: String,
    pub title: Option<String>,
}

/// Why an answer does not fit the question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("it takes no fields")]
    NoForm,
    #[error("its fields are missing")]
    NoContent,
    #[error("the answer is no JSON object: {0}")]
    NotJson(String),
    #[error("the answer is longer than {} bytes", super::ANSWER_BYTES_MAX)]
    TooLong,
    #[error("field {0:?} is missing")]
    Missing(String),
    #[error("there is no field {0:?}")]
    NoSuchField(String),
    #[error("field {field:?} wants {wants}")]
    Field { field: String, wants: String },
}

impl Form {
    /// Reads the schema of a form.
    pub fn read(schema: &Value) -> Result<Self, Unfit> {
        let schema = schema.as_object().ok_or(Unfit::Schema("it is no object"))?;
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(Unfit::Schema("its type is not object"));
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let properties = properties.ok_or(Unfit::Schema("it has no properties"))?;
        if properties.len() > FIELDS_MAX {
            return Err(Unfit::Schema("it has more than 32 fields"));
        }
        let required: Vec<&str> = strings(schema.get("required")).ok_or(Unfit::Schema("required is no list"))?;
        if required.iter().any(|name| !properties.contains_key(*name)) {
            return Err(Unfit::Schema("it requires a field that it does not have"));
        }
        let fields = properties.iter().map(|(name, property)| {
            let property = property.as_object().ok_or(Unfit::Schema("a field is no object"))?;
            let text = |key: &str| property.get(key).and_then(Value::as_str).map(str::to_owned);
            Ok(Field {
                name: name.clone(),
                title: text("title"),
                description: text("description"),
                required: required.contains(&name.as_str()),
                default: property.get("default").cloned(),
                kind: kind(property)?,
            })
        });
        Ok(Self { fields: fields.collect::<Result<_, _>>()? })
    }

    /// Whether `answer` fills in this form, and nothing besides.
    pub fn check(&self, answer: &Value) -> Result<(), Misfit> {
        let given = answer.as_object().ok_or_else(|| Misfit::NotJson("it is something else".to_owned()))?;
        if let Some(unknown) = given.keys().find(|name| !self.fields.iter().any(|field| field.name == **name)) {
            return Err(Misfit::NoSuchField(unknown.clone()));
        }
        self.fields.iter().try_for_each(|field| match given.get(&field.name) {
            None if field.required => Err(Misfit::Missing(field.name.clone())),
            None => Ok(()),
            Some(value) if field.kind.takes(value) => Ok(()),
            Some(_) => Err(Misfit::Field { field: field.name.clone(), wants: field.kind.to_string() }),
        })
    }
}

impl FieldKind {
    fn takes(&self, value: &Value) -> bool {
        match self {
            Self::Text { least, most, format } => value.as_str().is_some_and(|text| {
                within(text.chars().count(), *least, *most) && format.as_deref().is_none_or(|it| has_format(text, it))
            }),
            Self::Number { integer, least, most } => {
                let whole = value.is_i64() || value.is_u64();
                value.as_f64().is_some_and(|number| {
                    (whole || !integer) && least.is_none_or(|it| number >= it) && most.is_none_or(|it| number <= it)
                })
            }
            Self::Flag => value.is_boolean(),
            Self::One { choices } => value.as_str().is_some_and(|value| is_one(choices, value)),
            Self::Many { choices, least, most } => value.as_array().is_some_and(|values| {
                within(values.len(), *least, *most)
                    && values.iter().all(|value| value.as_str().is_some_and(|value| is_one(choices, value)))
                    && values.iter().enumerate().all(|(at, value)| !values.iter().skip(at + 1).any(|it| it == value))
            }),
        }
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { least, most, format } => {
                f.write_str("text")?;
                if let Some(format) = format {
                    write!(f, ", {format}")?;
                }
                bounds(f, least.as_ref(), most.as_ref(), " characters")
            }
            Self::Number { integer, least, most } => {
                f.write_str(if *integer { "a whole number" } else { "a number" })?;
                bounds(f, least.as_ref(), most.as_ref(), "")
            }
            Self::Flag => f.write_str("true or false"),
            Self::One { choices } => write!(f, "one of {}", names(choices)),
            Self::Many { choices, least, most } => {
                write!(f, "a list of {}", names(choices))?;
                bounds(f, least.as_ref(), most.as_ref(), " of them")
            }
        }
    }
}

fn bounds<T: fmt::Display>(f: &mut fmt::Formatter<'_>, least: Option<&T>, most: Option<&T>, of: &str) -> fmt::Result {
    if let Some(least) = least {
        write!(f, ", at least {least}{of}")?;
    }
    most.map_or(Ok(()), |most| write!(f, ", at most {most}{of}"))
}

fn names(choices: &[Choice]) -> String {
    let one = |choice: &Choice| match &choice.title {
        Some(title) => format!("{:?} ({title})", choice.value),
        None => format!("{:?}", choice.value),
    };
    choices.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn kind(property: &Map<String, Value>) -> Result<FieldKind, Unfit> {
    let number = |key: &str| property.get(key).and_then(Value::as_f64);
    let count = |key: &str| property.get(key).and_then(Value::as_u64);
    match property.get("type").and_then(Value::as_str) {
        Some("string") => Ok(match choices(property)? {
            Some(choices) => FieldKind::One { choices },
            None => FieldKind::Text {
                least: count("minLength"),
                most: count("maxLength"),
                format: property.get("format").and_then(Value::as_str).map(str::to_owned),
            },
        }),
        Some(kind @ ("number" | "integer")) => {
            Ok(FieldKind::Number { integer: kind == "integer", least: number("minimum"), most: number("maximum") })
        }
        Some("boolean") => Ok(FieldKind::Flag),
        Some("array") => {
            let items = property.get("items").and_then(Value::as_object);
            let choices = items.map(choices).transpose()?.flatten();
            let choices = choices.ok_or(Unfit::Schema("a list is not one of given choices"))?;
            Ok(FieldKind::Many { choices, least: count("minItems"), most: count("maxItems") })
        }
        Some(_) | None => Err(Unfit::Schema("a field is no text, number, flag or choice")),
    }
}

/// The choices of a field, in each of the spellings that MCP has had.
fn choices(property: &Map<String, Value>) -> Result<Option<Vec<Choice>>, Unfit> {
    let bad = Unfit::Schema("its choices are no texts, or more than 64");
    let titled = property.get("oneOf").or_else(|| property.get("anyOf"));
    let choices = if let Some(titled) = titled {
        let one = |choice: &Value| {
            let value = choice.get("const")?.as_str()?.to_owned();
            Some(Choice { value, title: choice.get("title").and_then(Value::as_str).map(str::to_owned) })
        };
        titled.as_array().and_then(|all| all.iter().map(one).collect::<Option<Vec<_>>>())
    } else if let Some(values) = property.get("enum") {
        let names = strings(property.get("enumNames")).unwrap_or_default();
        let one = |(at, value): (usize, &str)| Choice {
            value: value.to_owned(),
            title: names.get(at).map(|title| (*title).to_owned()),
        };
        strings(Some(values)).map(|values| values.into_iter().enumerate().map(one).collect())
    } else {
        return Ok(None);
    };
    choices.filter(|all| !all.is_empty() && all.len() <= CHOICES_MAX).map(Some).ok_or(bad)
}

/// A list of texts; an absent one is empty.
fn strings(value: Option<&Value>) -> Option<Vec<&str>> {
    value.map_or(Some(Vec::new()), |value| value.as_array()?.iter().map(Value::as_str).collect())
}

fn is_one(choices: &[Choice], value: &str) -> bool {
    choices.iter().any(|choice| choice.value == value)
}

fn within(count: usize, least: Option<u64>, most: Option<u64>) -> bool {
    let count = count as u64;
    least.is_none_or(|least| count >= least) && most.is_none_or(|most| count <= most)
}

/// Enough to notice a slip: the server has the last word on what it takes.
fn has_format(text: &str, format: &str) -> bool {
    match format {
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "uri" => text.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()),
        "date" => is_date(text),
        "date-time" => text.split_once(['T', 't']).is_some_and(|(date, time)| is_date(date) && time.contains(':')),
        _ => true,
    }
}

fn is_date(text: &str) -> bool {
    let parts: Vec<Option<u32>> = text.split('-').map(|part| part.parse().ok()).collect();
    let in_range = matches!(parts[..], [Some(_), Some(1..=12), Some(1..=31)]);
    in_range && text.len() == 10 && !text.contains('+')
}
