//! Puts arguments into a request. What comes out goes to the base URL and the path of the template, whatever the arguments
//! hold. Pure.

use http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
use serde_json::{Map, Value};

use super::operation::{FORM, Parameter, Piece, Place, Style, Template, chooses_method, essence};
use crate::credential::scope::{however_decoded, is_dots};

const URL_BYTES_MAX: usize = 8192;
const HEADER_BYTES_MAX: usize = 4096;

/// A request that can be sent as it is, but for a Credential.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<Vec<u8>>,
}

/// The request, or what of the arguments cannot be sent.
pub fn build(template: &Template, base_url: &str, arguments: &Map<String, Value>) -> Result<Request, String> {
    if let Some(stray) = arguments.keys().find(|name| !has_place(template, name)) {
        return Err(format!("nothing of the request carries the argument {stray}"));
    }
    let mut headers = Vec::new();
    let mut query = Vec::new();
    for parameter in &template.parameters {
        let Some(value) = arguments.get(&parameter.argument).filter(|value| !value.is_null()) else { continue };
        match parameter.place {
            Place::Path => {}
            Place::Query => {
                let values = written(parameter, value, encoded)?;
                query.extend(values.into_iter().map(|value| format!("{}={value}", encoded(&parameter.name))));
            }
            Place::Header => headers.extend(header(parameter, value)?),
        }
    }
    let path = path(template, arguments)?;
    let url = url(base_url, &path, &query.join("&"))?;
    let body = template.body.as_ref().and_then(|body| arguments.get(&body.argument).map(|value| (body, value)));
    let body = match body {
        Some((body, value)) => {
            if let Some(name) = value.as_object().and_then(|fields| fields.keys().find(|name| chooses_method(name))) {
                let argument = &body.argument;
                return Err(format!(
                    "the field {name} of the argument {argument} chooses the request's method: leave it out"
                ));
            }
            let media_type = HeaderValue::from_str(&body.media_type).map_err(|error| error.to_string())?;
            headers.push((http::header::CONTENT_TYPE, media_type));
            Some(match essence(&body.media_type).as_str() {
                FORM => form(&body.argument, value)?.into_bytes(),
                _ => serde_json::to_vec(value).map_err(|error| error.to_string())?,
            })
        }
        None => None,
    };
    Ok(Request { method: template.method.clone(), url, headers, body })
}

fn has_place(template: &Template, name: &str) -> bool {
    template.parameters.iter().any(|parameter| parameter.argument == name)
        || template.body.as_ref().is_some_and(|body| body.argument == name)
}

fn path(template: &Template, arguments: &Map<String, Value>) -> Result<String, String> {
    let mut path = String::new();
    for piece in &template.path.pieces {
        let name = match piece {
            Piece::Text(text) => {
                path.push_str(text);
                continue;
            }
            Piece::Parameter(name) => name,
        };
        let of_name = |one: &&Parameter| one.place == Place::Path && one.name == *name;
        let parameter =
            template.parameters.iter().find(of_name).ok_or(format!("nothing fills {{{name}}} of the path"))?;
        let value = arguments.get(&parameter.argument).unwrap_or(&Value::Null);
        let values = written(parameter, value, str::to_owned)?;
        if values.iter().any(|value| leaves_its_segment(value)) {
            return Err(format!(
                "the argument {} is a part of the path: it is neither empty nor . or .., however it is encoded, and holds no control characters",
                parameter.argument
            ));
        }
        path.push_str(&written(parameter, value, encoded)?.concat());
    }
    Ok(path)
}

/// Whether a server that decodes a value before it looks at the path would see another one.
fn leaves_its_segment(value: &str) -> bool {
    let climbs = |text: &[u8]| text.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dots);
    let is_strange = |text: &[u8]| text.iter().any(u8::is_ascii_control) || climbs(text);
    value.is_empty() || value.chars().any(char::is_control) || however_decoded(value.as_bytes().to_vec(), is_strange)
}

/// The whole URL, whose path is the base's and then this one: nothing in it may have been read as a way up.
fn url(base_url: &str, path: &str, query: &str) -> Result<Url, String> {
    let base = Url::parse(base_url).map_err(|error| format!("{base_url} is not a URL: {error}"))?;
    let expected = format!("{}{path}", base.path().trim_end_matches('/'));
    let mut url = base;
    url.set_path(&expected);
    url.set_query((!query.is_empty()).then_some(query));
    if url.path() != expected {
        return Err(format!("the path {expected} would be read as {}", url.path()));
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(format!("the URL would be longer than {URL_BYTES_MAX} bytes: call it with less at a time"));
    }
    Ok(url)
}

fn header(parameter: &Parameter, value: &Value) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let text = written(parameter, value, str::to_owned)?.join(",");
    let wrong = || format!("the argument {} cannot be the value of a header", parameter.argument);
    if text.len() > HEADER_BYTES_MAX || text.contains('\t') {
        return Err(wrong());
    }
    let name = HeaderName::from_bytes(parameter.name.as_bytes()).map_err(|_| wrong())?;
    Ok(Some((name, HeaderValue::from_str(&text).map_err(|_| wrong())?)))
}

/// The argument as text: one, or of a list that is repeated, each.
fn written(parameter: &Parameter, value: &Value, encode: fn(&str) -> String) -> Result<Vec<String>, String> {
    let each = |values: &[Value]| -> Result<Vec<String>, String> {
        values.iter().map(|value| scalar(parameter, value).map(|text| encode(&text))).collect()
    };
    match (parameter.style, value) {
        (Style::Json, value) => Ok(vec![encode(&value.to_string())]),
        (Style::Repeated, Value::Array(values)) => each(values),
        (Style::Joined(between), Value::Array(values)) => Ok(vec![each(values)?.join(between)]),
        (Style::Repeated | Style::Joined(_), value) => each(std::slice::from_ref(value)),
    }
}

fn scalar(parameter: &Parameter, value: &Value) -> Result<String, String> {
    text_of(value).ok_or_else(|| {
        format!("the argument {} is sent as text: it is a value or a list of values", parameter.argument)
    })
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `a=1&b=x%20y`: each field of an object, a list as its field repeated, without what is null.
fn form(argument: &str, value: &Value) -> Result<String, String> {
    let wrong = || format!("the argument {argument} is sent as a form: it is an object of values and lists of values");
    let mut pairs = Vec::new();
    for (name, value) in value.as_object().ok_or_else(wrong)? {
        let values = match value {
            Value::Null => &[],
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            pairs.push(format!("{}={}", encoded(name), encoded(&text_of(value).ok_or_else(wrong)?)));
        }
    }
    Ok(pairs.join("&"))
}

/// Percent-encoded but for the characters that mean nothing in any part of a URL.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::tools::http::operation::{Body, Path};

    const BASE: &str = "https://api.example.com/v1/";

    fn template(path: &str, parameters: &[(&str, Place, Style)]) -> Template {
        let one = |(name, place, style): &(&str, Place, Style)| Parameter {
            argument: (*name).to_owned(),
            name: (*name).to_owned(),
            place: *place,
            style: *style,
        };
        Template {
            method: Method::POST,
            path: Path::parse(path).unwrap(),
            parameters: parameters.iter().map(one).collect(),
            body: Some(Body { argument: "body".into(), media_type: "application/json".into() }),
        }
    }

    fn built(template: &Template, arguments: Value) -> Result<Request, String> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        build(template, BASE, &arguments)
    }

    const SIMPLE: Style = Style::Joined(",");

    #[rstest]
    #[case::plain("a", "https://api.example.com/v1/x/a/y")]
    #[case::number(7, "https://api.example.com/v1/x/7/y")]
    #[case::list(json!(["a", "b/c"]), "https://api.example.com/v1/x/a,b%2Fc/y")]
    #[case::slash("group/project", "https://api.example.com/v1/x/group%2Fproject/y")]
    #[case::query("a?b#c", "https://api.example.com/v1/x/a%3Fb%23c/y")]
    #[case::encoded_already("100%25 a%2Fb;c", "https://api.example.com/v1/x/100%2525%20a%252Fb%3Bc/y")]
    #[case::dots_in_a_name("v1..2.", "https://api.example.com/v1/x/v1..2./y")]
    #[case::wide("ä😀", "https://api.example.com/v1/x/%C3%A4%F0%9F%98%80/y")]
    #[case::another_host("//evil.example", "https://api.example.com/v1/x/%2F%2Fevil.example/y")]
    #[case::user_info("u:p@evil.example", "https://api.example.com/v1/x/u%3Ap%40evil.example/y")]
    fn a_value_stays_within_its_segment(#[case] value: impl Into<Value>, #[case] url: &str) {
        let template = template("/x/{id}/y", &[("id", Place::Path, SIMPLE)]);
        assert_eq!(built(&template, json!({"id": value.into()})).unwrap().url.as_str(), url);
    }

    #[rstest]
    #[case::empty("")]
    #[case::dot(".")]
    #[case::up("..")]
    #[case::up_within("a/../../admin")]
    #[case::up_with_backslashes("..\\admin")]
    #[case::encoded_up("%2e%2E")]
    #[case::half_encoded_up(".%2e")]
    #[case::twice_encoded_up("%252e%252e")]
    #[case::encoded_up_within("a%2f..%2fadmin")]
    #[case::twice_encoded_up_within("a%252f%252e.")]
    #[case::encoded_up_with_backslashes("a%5c..%5cadmin")]
    #[case::encoded_without_an_end("%2525252525252e")]
    #[case::up_with_parameters("..;a=b/admin")]
    #[case::encoded_line("a%0d%0aHost: evil")]
    #[case::line("a\r\nHost: evil")]
    #[case::nothing(Value::Null)]
    #[case::object(json!({"a": 1}))]
    #[case::empty_list(json!([]))]
    fn a_value_that_would_leave_its_segment_is_refused(#[case] value: impl Into<Value>) {
        let template = template("/x/{id}/y", &[("id", Place::Path, SIMPLE)]);
        let refused = built(&template, json!({"id": value.into()})).unwrap_err();
        assert!(refused.contains("the argument id"), "{refused}");
    }

    #[rstest]
    #[case::json("application/json")]
    #[case::form(FORM)]
    fn no_field_of_a_body_makes_a_request_another_methods(#[case] media_type: &str) {
        let body = Some(Body { argument: "body".into(), media_type: media_type.into() });
        let template = Template { body, ..template("/x", &[]) };
        for name in ["_method", "_Method[]", "x-http-method-override"] {
            let refused = built(&template, json!({"body": {"a": 1, name: "DELETE"}})).unwrap_err();
            assert!(refused.contains(&format!("the field {name} of the argument body chooses")), "{refused}");
        }
        assert!(built(&template, json!({"body": {"method": "DELETE"}})).is_ok());
    }

    #[test]
    fn two_values_do_not_make_a_way_up_together() {
        let template = template(
            "/{a}{b}/{c}",
            &[("a", Place::Path, SIMPLE), ("b", Place::Path, SIMPLE), ("c", Place::Path, SIMPLE)],
        );
        assert!(built(&template, json!({"a": "x", "b": "y", "c": "z"})).is_ok());
        let joined = template_of_dots();
        let refused = built(&joined, json!({"a": "x"})).unwrap_err();
        assert!(refused.contains("would be read as"), "{refused}");
    }

    fn template_of_dots() -> Template {
        template("/{a}/%2e%2e/y", &[("a", Place::Path, SIMPLE)])
    }

    #[rstest]
    #[case::each(Style::Repeated, json!(["a", "b c", 3]), "q=a&q=b%20c&q=3")]
    #[case::one(Style::Repeated, json!("a&b=c"), "q=a%26b%3Dc")]
    #[case::flag(Style::Repeated, json!(true), "q=true")]
    #[case::empty(Style::Repeated, json!(""), "q=")]
    #[case::commas(SIMPLE, json!(["a", "b,c"]), "q=a,b%2Cc")]
    #[case::spaces(Style::Joined("%20"), json!(["a", "b"]), "q=a%20b")]
    #[case::as_json(Style::Json, json!({"a": [1]}), "q=%7B%22a%22%3A%5B1%5D%7D")]
    fn a_query_is_written_by_its_style(#[case] style: Style, #[case] value: Value, #[case] query: &str) {
        let template = template("/x", &[("q", Place::Query, style)]);
        assert_eq!(built(&template, json!({"q": value})).unwrap().url.query(), Some(query));
        assert_eq!(built(&template, json!({"q": null})).unwrap().url.query(), None);
        assert_eq!(built(&template, json!({})).unwrap().url.as_str(), "https://api.example.com/v1/x");
    }

    #[test]
    fn headers_and_body_carry_what_they_are_given() {
        let template = template("/x", &[("If-Match", Place::Header, SIMPLE)]);
        let request = built(&template, json!({"If-Match": ["a", "b"], "body": {"n": 1}})).unwrap();
        let headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("if-match", "a,b"), ("content-type", "application/json")]);
        assert_eq!((request.body.as_deref(), request.method), (Some(&br#"{"n":1}"#[..]), Method::POST));
        for wrong in ["a\r\nX: y", "tab\there", "ä\u{0}", &"x".repeat(HEADER_BYTES_MAX + 1)] {
            assert!(built(&template, json!({"If-Match": wrong})).unwrap_err().contains("the argument If-Match"));
        }
    }

    #[test]
    fn a_form_carries_values_and_lists_of_them_and_nothing_else() {
        let form =
            Body { argument: "body".into(), media_type: "Application/X-WWW-Form-Urlencoded; charset=utf-8".into() };
        let template = Template { body: Some(form), ..template("/x", &[]) };
        let body = json!({"text": "a&b=c +\u{e4}", "n": 3, "on": true, "tags": ["x", "y z"], "none": null});
        let sent = built(&template, json!({"body": body})).unwrap().body.unwrap();
        assert_eq!(sent, b"n=3&on=true&tags=x&tags=y%20z&text=a%26b%3Dc%20%2B%C3%A4");
        for wrong in [json!([1]), json!("a=1"), json!({"a": {"b": 1}}), json!({"a": [[1]]})] {
            assert!(
                built(&template, json!({"body": wrong})).unwrap_err().contains("the argument body is sent as a form")
            );
        }
    }

    #[test]
    fn an_argument_without_a_place_is_not_dropped_in_silence() {
        let refused = built(&template("/x", &[]), json!({"force": true})).unwrap_err();
        assert_eq!(refused, "nothing of the request carries the argument force");
    }

    #[test]
    fn a_url_is_bounded() {
        let template = template("/x", &[("q", Place::Query, Style::Repeated)]);
        assert!(built(&template, json!({"q": "x".repeat(URL_BYTES_MAX)})).unwrap_err().contains("longer than"));
    }
}
