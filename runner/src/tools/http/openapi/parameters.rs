//! Parameters and bodies of an operation: the properties of its arguments, and where each goes. Pure.

use http::Method;
use serde_json::{Map, Value, json};

use super::schemas::Schemas;
use super::{Found, Terms, resolved};
use crate::tools::http::operation::{
    Body, Parameter, Path, Place, Style, argument_name, refused_header, refused_query,
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
        match place_of(name, place, path, terms) {
            Ok(Some(place)) => read.add(schemas, name, place, value, required)?,
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
        value: &Value,
        required: bool,
    ) -> Result<(), String> {
        let (schema, style) = match value.get("schema") {
            Some(schema) => (schema, style_of(name, place, value)?),
            None => (content_of(name, value)?, Style::Json),
        };
        let mut schema = schemas.convert(schema)?;
        if let (Some(words), Value::Object(fields)) = (value.get("description"), &mut schema) {
            fields.entry("description").or_insert_with(|| words.clone());
        }
        let argument = argument_name(name, &self.properties);
        self.properties.insert(argument.clone(), schema);
        if required {
            self.required.push(argument.clone());
        }
        self.parameters.push(Parameter { argument, name: name.to_owned(), place, style });
        Ok(())
    }
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

/// The JSON body, where the operation takes one. A body of another kind that may be left out is left out.
pub fn body_of(schemas: &mut Schemas<'_>, found: &Found<'_>, read: &mut Read) -> Result<Option<Body>, String> {
    let Some(body) = found.operation.get("requestBody") else { return Ok(None) };
    if matches!(*found.method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let body = resolved(schemas.document, body)?;
    let required = body.get("required") == Some(&Value::Bool(true));
    let content = body.get("content").and_then(Value::as_object);
    let is_json = |media_type: &str| {
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    };
    let mut json: Vec<_> = content.into_iter().flatten().filter(|(media_type, _)| is_json(media_type)).collect();
    json.sort_by_key(|(media_type, _)| media_type.as_str() != "application/json");
    let Some((media_type, described)) = json.first() else {
        return if required { Err("its body is not JSON, which is not supported".to_owned()) } else { Ok(None) };
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
