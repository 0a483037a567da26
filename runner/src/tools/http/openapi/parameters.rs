//! Parameters and bodies of an operation: the properties of its arguments, and where each goes. Pure.

use http::Method;
use serde_json::{Map, Value, json};

use super::schemas::Schemas;
use super::{Found, Terms, resolved};
use crate::tools::http::operation::{
    Body, FORM, Parameter, Path, Place, Style, argument_name, essence, refused_header, refused_query,
};

/// Where the body goes among the arguments, if no parameter is called so.
const BODY: &str = "body";
/// Headers that OpenAPI describes elsewhere.
const NOT_PARAMETERS: [&str; 3] = ["accept", "content-type", "authorization"];

/// What has been read of an operation's arguments.
#[derive(Default)]
pub struct Read {
    pub parameters: Vec<Parameter>,
    pub properties: Map<String, Value>,
    pub required: Vec<String>,
}

/// The parameters of a path item, replaced and followed by those of the operation.
pub fn parameters_of(
    schemas: &mut Schemas<'_>,
    levels: [&Map<String, Value>; 2],
    path: &Path,
    terms: &Terms<'_>,
) -> Result<Read, String> {
    let mut described: Vec<(&str, &str, &Value)> = Vec::new();
    for level in levels {
        for value in level.get("parameters").and_then(Value::as_array).into_iter().flatten() {
            let value = resolved(schemas.document, value)?;
            let text = |field: &str| value.get(field).and_then(Value::as_str);
            let (Some(name), Some(place)) = (text("name"), text("in")) else {
                return Err("a parameter of it has no name or no place".to_owned());
            };
            described.retain(|(other, elsewhere, _)| (*other, *elsewhere) != (name, place));
            described.push((name, place, value));
        }
    }
    let mut read = Read::default();
    for (name, place, value) in described {
        let required = place == "path" || value.get("required") == Some(&Value::Bool(true));
        let sent = place_of(name, place, path, terms).and_then(|place| {
            place.map(|place| Ok((place, described_by(schemas.document, name, place, value)?))).transpose()
        });
        match sent {
            Ok(Some((place, described))) => read.add(schemas, name, place, &described, required)?,
            Err(why) if required => return Err(why),
            // No parameter at all, or one that can be left out of every request.
            Ok(None) | Err(_) => {}
        }
    }
    let unfilled = path.parameters().find(|name| {
        !read.parameters.iter().any(|parameter| parameter.place == Place::Path && parameter.name == **name)
    });
    match unfilled {
        Some(name) => Err(format!("no parameter fills {{{name}}} of its path {}", path.written)),
        None => Ok(read),
    }
}

fn place_of(name: &str, place: &str, path: &Path, terms: &Terms<'_>) -> Result<Option<Place>, String> {
    match place {
        "path" if path.parameters().any(|placeholder| placeholder == name) => Ok(Some(Place::Path)),
        "path" => Err(format!("its path {} has no {{{name}}}", path.written)),
        "query" => match refused_query(name, terms.carrier) {
            Some(why) => Err(why),
            None => Ok(Some(Place::Query)),
        },
        "header" if NOT_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) => Ok(None),
        "header" => match refused_header(name, terms.carrier) {
            Some(why) => Err(why),
            None => Ok(Some(Place::Header)),
        },
        other => Err(format!("its parameter {name} is sent in a {other}, which is not supported")),
    }
}

impl Read {
    fn add(
        &mut self,
        schemas: &mut Schemas<'_>,
        name: &str,
        place: Place,
        described: &Described<'_>,
        required: bool,
    ) -> Result<(), String> {
        let mut schema = schemas.convert(described.schema)?;
        if let (Some(words), Value::Object(fields)) = (described.words, &mut schema) {
            fields.entry("description").or_insert_with(|| words.clone());
        }
        let argument = argument_name(name, &self.properties);
        self.properties.insert(argument.clone(), schema);
        if required {
            self.required.push(argument.clone());
        }
        self.parameters.push(Parameter { argument, name: name.to_owned(), place, style: described.style });
        Ok(())
    }
}

/// What a document says of a parameter.
struct Described<'a> {
    schema: &'a Value,
    style: Style,
    words: Option<&'a Value>,
}

fn described_by<'a>(document: &Value, name: &str, place: Place, value: &'a Value) -> Result<Described<'a>, String> {
    let words = value.get("description");
    let Some(schema) = value.get("schema") else {
        return Ok(Described { schema: content_of(name, value)?, style: Style::Json, words });
    };
    let style = style_of(name, place, value)?;
    let kind = resolved(document, schema).ok().and_then(|schema| schema.get("type"));
    if kind
        .is_some_and(|kind| kind == "object" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("object"))))
    {
        return Err(format!("its parameter {name} is an object that is sent as text, which is not supported"));
    }
    Ok(Described { schema, style, words })
}

/// How the parameter's lists are written. Objects have no place in a text.
fn style_of(name: &str, place: Place, value: &Value) -> Result<Style, String> {
    let default = if place == Place::Query { "form" } else { "simple" };
    let style = value.get("style").and_then(Value::as_str).unwrap_or(default);
    let explode = value.get("explode").and_then(Value::as_bool).unwrap_or(style == "form");
    match (place, style, explode) {
        (Place::Query, "form", true) => Ok(Style::Repeated),
        (Place::Query, "form", false) | (Place::Path | Place::Header, "simple", _) => Ok(Style::Joined(",")),
        (Place::Query, "spaceDelimited", false) => Ok(Style::Joined("%20")),
        (Place::Query, "pipeDelimited", false) => Ok(Style::Joined("%7C")),
        _ => Err(format!("its parameter {name} has the style {style}, which is not supported")),
    }
}

fn content_of<'a>(name: &str, value: &'a Value) -> Result<&'a Value, String> {
    let content = value.get("content").and_then(|content| content.get("application/json"));
    let schema = content.and_then(|content| content.get("schema"));
    schema.ok_or_else(|| format!("its parameter {name} has neither a schema nor JSON content"))
}

/// The body as JSON, or as a form where it is not taken as JSON. One of another kind that may be left out is left out.
pub fn body_of(schemas: &mut Schemas<'_>, found: &Found<'_>, read: &mut Read) -> Result<Option<Body>, String> {
    let Some(body) = found.operation.get("requestBody") else { return Ok(None) };
    let body = resolved(schemas.document, body)?;
    let required = body.get("required") == Some(&Value::Bool(true));
    if matches!(*found.method, Method::GET | Method::HEAD) {
        return if required {
            Err(format!("it sends a body with {}, which is not supported", found.method))
        } else {
            Ok(None)
        };
    }
    let content = body.get("content").and_then(Value::as_object);
    let mut taken: Vec<_> = content
        .into_iter()
        .flatten()
        .filter_map(|(media_type, described)| Some((liking(media_type)?, media_type, described)))
        .collect();
    taken.sort_by_key(|(liking, ..)| *liking);
    let Some((_, media_type, described)) = taken.first() else {
        return if required {
            Err("its body is neither JSON nor a form, which is not supported".to_owned())
        } else {
            Ok(None)
        };
    };
    let mut schema = described.get("schema").map_or_else(|| Ok(json!({})), |schema| schemas.convert(schema))?;
    if let (Some(words), Value::Object(fields)) = (body.get("description"), &mut schema) {
        fields.entry("description").or_insert_with(|| words.clone());
    }
    let argument = argument_name(BODY, &read.properties);
    read.properties.insert(argument.clone(), schema);
    if required {
        read.required.push(argument.clone());
    }
    Ok(Some(Body { argument, media_type: (*media_type).clone() }))
}

/// Which of several bodies is sent: the least. None: it cannot be sent.
fn liking(media_type: &str) -> Option<u8> {
    match essence(media_type).as_str() {
        "application/json" => Some(0),
        other if other.starts_with("application/") && other.ends_with("+json") => Some(1),
        FORM => Some(2),
        _ => None,
    }
}
