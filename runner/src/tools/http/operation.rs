//! One operation of an HTTP API: what the model is told of it, and where its arguments go in the request. Pure.

use belay_protocol::call::http_definition_digest;
use http::{HeaderName, Method};
use serde_json::{Map, Value, json};

use crate::tools::Definition;

/// What is kept of a description.
const DESCRIPTION_BYTES_MAX: usize = 4096;
/// What the model APIs take as the name of an argument.
const ARGUMENT_NAME_MAX: usize = 64;
/// Headers that frame, route or authenticate a request, choose its method, say who sends it, or are ours.
const NO_PARAMETERS: [&str; 22] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cf-connecting-ip",
    "client-ip",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "idempotency-key",
    "keep-alive",
    "remote-user",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
];
/// And all that begin like this.
const NO_PARAMETERS_BEGIN: [&str; 13] = [
    "proxy-",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-",
    "x-forwarded",
    "x-host",
    "x-http-method",
    "x-http-path",
    "x-method-override",
    "x-original-",
    "x-real-ip",
    "x-remote-",
    "x-rewrite-",
];

/// Names by which frameworks let a POST pass for another method, with `-` for `_`.
const METHOD_NAMES: [&str; 6] =
    ["-method", "-http-method", "x-http-method", "x-http-method-override", "x-method-override", "http-method-override"];

/// An operation that can be offered and sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    pub definition: Definition,
    pub template: Template,
}

/// A request with places for arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub method: Method,
    pub path: Path,
    pub parameters: Vec<Parameter>,
    pub body: Option<Body>,
}

/// `/repos/{owner}/issues`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub written: String,
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// The parameter of that name, as the template spells it.
    Parameter(String),
}

/// An argument that is not the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub argument: String,
    /// As the API spells it.
    pub name: String,
    pub place: Place,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
    Header,
}

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `a=1&a=2`
    Repeated,
    /// One value, with these characters in between.
    Joined(&'static str),
    /// Whatever it is, as JSON.
    Json,
}

/// The argument that is sent as a body: as a form where the media type is [`FORM`], else as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pub argument: String,
    pub media_type: String,
}

pub const FORM: &str = "application/x-www-form-urlencoded";

/// A media type without its parameters, in small letters.
pub fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

impl Place {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

impl Path {
    /// Reads a template. It holds no query and nothing that a URL would have to spell otherwise.
    pub fn parse(written: &str) -> Result<Self, String> {
        if !written.starts_with('/') {
            return Err(format!("its path {written} does not begin with /"));
        }
        let mut pieces = Vec::new();
        let mut rest = written;
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) =
                after.split_once('}').ok_or_else(|| format!("its path {written} has a {{ without a }}"))?;
            if name.is_empty() || name.contains('{') {
                return Err(format!("its path {written} has a placeholder without a name"));
            }
            pieces.extend([Piece::Text(text.to_owned()), Piece::Parameter(name.to_owned())]);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c);
        let is_plain = |piece: &Piece| match piece {
            Piece::Text(text) => text.chars().all(fits),
            Piece::Parameter(_) => true,
        };
        if !pieces.iter().all(is_plain) {
            return Err(format!("its path {written} holds characters that no path of a URL may hold"));
        }
        Ok(Self { written: written.to_owned(), pieces })
    }

    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }
}

impl Template {
    /// What the digest of a definition covers besides its words: method, place and name of all that is sent.
    fn covered(&self, base_url: &str) -> Value {
        let one = |parameter: &Parameter| {
            let Parameter { argument, name, place, style } = parameter;
            let style = match style {
                Style::Repeated => "repeated",
                Style::Joined(between) => between,
                Style::Json => "json",
            };
            json!({"argument": argument, "name": name, "in": place.as_str(), "style": style})
        };
        let body = self.body.as_ref().map(|body| json!({"argument": body.argument, "mediaType": body.media_type}));
        json!({
            "baseURL": base_url,
            "method": self.method.as_str(),
            "path": self.path.written,
            "parameters": self.parameters.iter().map(one).collect::<Vec<_>>(),
            "body": body,
        })
    }

    /// `GET /pets/{petId}?limit&tags, header If-Match`: so that whoever reads a definition sees where arguments go.
    fn summary(&self) -> String {
        let named = |place: Place| {
            let of_place = self.parameters.iter().filter(move |parameter| parameter.place == place);
            of_place.map(|parameter| parameter.name.as_str()).collect::<Vec<_>>()
        };
        let (query, headers) = (named(Place::Query), named(Place::Header));
        let mut words = format!("{} {}", self.method, self.path.written);
        if !query.is_empty() {
            words = format!("{words}?{}", query.join("&"));
        }
        if !headers.is_empty() {
            words = format!("{words}, header {}", headers.join(", "));
        }
        if let Some(body) = &self.body {
            words = format!("{words}, body {}", body.argument);
        }
        words
    }
}

/// What an operation is made of.
pub struct Draft {
    pub name: String,
    pub description: String,
    pub template: Template,
    /// Of the arguments, by name.
    pub properties: Map<String, Value>,
    pub required: Vec<String>,
    pub definitions: Map<String, Value>,
}

impl Draft {
    /// The operation, or why it cannot be offered.
    pub fn finish(self, base_url: &str) -> Result<Operation, String> {
        let Self { name, description, template, properties, mut required, definitions } = self;
        required.sort();
        required.dedup();
        let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
        if let Value::Object(fields) = &mut schema {
            if !required.is_empty() {
                fields.insert("required".to_owned(), required.into());
            }
            if !definitions.is_empty() {
                fields.insert("$defs".to_owned(), definitions.into());
            }
        }
        let end = description.floor_char_boundary(DESCRIPTION_BYTES_MAX);
        let told = description.get(..end).unwrap_or_default().trim();
        let description = format!("{}\n\n{told}", template.summary()).trim_end().to_owned();
        let digest = http_definition_digest(&name, &description, &schema, &template.covered(base_url));
        let digest = digest.map_err(|error| format!("its schema has no canonical form: {error}"))?;
        Ok(Operation { definition: Definition { name, description, input_schema: schema, digest }, template })
    }
}

/// What a Tool's Credential goes into: a header or a query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Carrier<'a> {
    pub place: Place,
    pub name: &'a str,
}

/// Why a header cannot be a parameter. Many servers read `_` in its name as `-`.
pub fn refused_header(name: &str, carrier: Option<Carrier<'_>>) -> Option<String> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let read = plain(name);
    if carrier.is_some_and(|carrier| carrier.place == Place::Header && plain(carrier.name) == read) {
        return Some(format!("header {name} carries the Credential"));
    }
    if NO_PARAMETERS.contains(&read.as_str()) || NO_PARAMETERS_BEGIN.iter().any(|begin| read.starts_with(begin)) {
        return Some(format!("header {name} frames, routes or authenticates the request"));
    }
    HeaderName::from_bytes(name.as_bytes()).err().map(|_| format!("{name} is no name of a header"))
}

/// Why a part of the query cannot be a parameter. Some servers read names in any case.
pub fn refused_query(name: &str, carrier: Option<Carrier<'_>>) -> Option<String> {
    if carrier.is_some_and(|one| one.place == Place::Query && one.name.eq_ignore_ascii_case(name)) {
        return Some(format!("query parameter {name} carries the Credential"));
    }
    chooses_method(name).then(|| format!("query parameter {name} chooses the request's method"))
}

/// Whether a part of the query or of the body makes the request another one than was permitted. Frameworks read names in any
/// case, `_`, `.` and spaces alike, and some only up to a NUL.
pub fn chooses_method(name: &str) -> bool {
    let read =
        name.trim_start().split('\0').next().unwrap_or_default().to_ascii_lowercase().replace(['_', '.', ' '], "-");
    METHOD_NAMES.contains(&read.split('[').next().unwrap_or_default())
}

/// A name for an argument that every model API takes and that is not `taken`.
pub fn argument_name(name: &str, taken: &Map<String, Value>) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    let plain: String = name.chars().map(legal).take(ARGUMENT_NAME_MAX).collect();
    let short: String = plain.chars().take(ARGUMENT_NAME_MAX - 4).collect();
    let numbered = (2..).map(|number: u16| format!("{short}_{number}"));
    std::iter::once(plain).chain(numbered).find(|name| !taken.contains_key(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;

    fn template(path: &str) -> Template {
        let parameter = |name: &str, place, style| Parameter { argument: name.into(), name: name.into(), place, style };
        Template {
            method: Method::POST,
            path: Path::parse(path).unwrap(),
            parameters: vec![
                parameter("id", Place::Path, Style::Joined(",")),
                parameter("tags", Place::Query, Style::Repeated),
                parameter("If-Match", Place::Header, Style::Joined(",")),
            ],
            body: Some(Body { argument: "body".into(), media_type: "application/json".into() }),
        }
    }

    fn operation(template: Template, base_url: &str) -> Operation {
        let properties = json!({"id": {"type": "string"}, "tags": {}, "If-Match": {}, "body": {}});
        let Value::Object(properties) = properties else { unreachable!() };
        let draft = Draft {
            name: "o".into(),
            description: " Does it. ".into(),
            template,
            properties,
            required: vec!["id".into()],
            definitions: Map::new(),
        };
        draft.finish(base_url).unwrap()
    }

    #[test]
    fn a_definition_says_where_every_argument_goes() {
        let operation = operation(template("/a/{id}"), "http://x");
        assert_eq!(operation.definition.description, "POST /a/{id}?tags, header If-Match, body body\n\nDoes it.");
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["id"],
            "properties": {"id": {"type": "string"}, "tags": {}, "If-Match": {}, "body": {}},
        });
        assert_eq!(operation.definition.input_schema, schema);
    }

    /// People accept what is sent where, not only what it is called.
    #[test]
    fn a_digest_covers_method_path_base_url_places_and_styles() {
        let accepted = operation(template("/a/{id}"), "http://x");
        let digest = |change: fn(&mut Template)| {
            let mut other = template("/a/{id}");
            change(&mut other);
            operation(other, "http://x").definition.digest
        };
        let changes: [fn(&mut Template); 7] = [
            |it| it.method = Method::DELETE,
            |it| it.path = Path::parse("/b/{id}").unwrap(),
            |it| it.parameters.iter_mut().for_each(|one| one.place = Place::Query),
            |it| it.parameters.iter_mut().for_each(|one| one.style = Style::Json),
            |it| it.parameters.iter_mut().for_each(|one| one.name = "other".into()),
            |it| it.body = None,
            |it| it.body = Some(Body { argument: "body".into(), media_type: "application/merge-patch+json".into() }),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            assert_ne!(digest(change), accepted.definition.digest, "change {at}");
        }
        assert_eq!(digest(|_| ()), accepted.definition.digest);
        assert_ne!(operation(template("/a/{id}"), "http://y").definition.digest, accepted.definition.digest);
    }

    #[rstest]
    #[case("a", "does not begin with /")]
    #[case("/{a", "without a }")]
    #[case("/{}", "without a name")]
    #[case("/a?b=c", "no path of a URL")]
    #[case("/a b", "no path of a URL")]
    #[case("/ä", "no path of a URL")]
    #[case("/a#b", "no path of a URL")]
    #[case("/a\\b", "no path of a URL")]
    fn a_template_that_is_no_path_is_refused(#[case] path: &str, #[case] words: &str) {
        assert!(Path::parse(path).unwrap_err().contains(words));
    }

    #[rstest]
    #[case("If-Match", true)]
    #[case("X-Trace", true)]
    #[case("HOST", false)]
    #[case("Cookie", false)]
    #[case("X-HTTP-Method-Override", false)]
    #[case("Proxy-Authorization", false)]
    #[case("X-Forwarded-For", false)]
    #[case("X_Forwarded_For", false)]
    #[case("X-ForwardedFor", false)]
    #[case("Transfer_Encoding", false)]
    #[case("X-Original-Host", false)]
    #[case("X-HTTP-Method", false)]
    #[case("True-Client-IP", false)]
    #[case("CF-Connecting-IP", false)]
    #[case("Client-IP", false)]
    #[case("X-Remote-User", false)]
    #[case("X-Envoy-Original-Path", false)]
    #[case("Accept-Encoding", false)]
    #[case("Idempotency-Key", false)]
    #[case("X-Api-Key", false)]
    #[case("X_Api_Key", false)]
    #[case("a b", false)]
    fn headers_that_say_whose_request_it_is_are_no_parameters(#[case] name: &str, #[case] may: bool) {
        assert_eq!(refused_header(name, Some(Carrier { place: Place::Header, name: "x-api_key" })).is_none(), may);
    }

    #[rstest]
    #[case("state", true)]
    #[case("method", true)]
    #[case("filter[_method]", true)]
    #[case("_method", false)]
    #[case("_method\0x", false)]
    #[case("_METHOD[]", false)]
    #[case(" .method", false)]
    #[case("X-HTTP-Method-Override", false)]
    #[case("x_http_method_override", false)]
    #[case("Key", false)]
    fn parameters_that_choose_the_method_or_carry_the_credential_are_none(#[case] name: &str, #[case] may: bool) {
        assert_eq!(refused_query(name, Some(Carrier { place: Place::Query, name: "key" })).is_none(), may);
    }

    #[test]
    fn arguments_have_names_that_every_model_takes() {
        let taken = Map::from_iter([("a_b_".to_owned(), Value::Null)]);
        assert_eq!(argument_name("filter", &taken), "filter");
        assert_eq!(argument_name("a[b]", &taken), "a_b__2");
        assert_eq!(argument_name(&"é".repeat(80), &taken).len(), ARGUMENT_NAME_MAX);
    }
}
