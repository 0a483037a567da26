#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use rstest::rstest;
use serde_json::json;

use super::*;

/// One field of each kind, in every spelling that MCP has had.
fn schema() -> Value {
    json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "title": "Name", "minLength": 2, "maxLength": 5},
        "mail": {"type": "string", "format": "email"},
        "born": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "site": {"type": "string", "format": "uri"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "share": {"type": "number", "maximum": 1},
        "sure": {"type": "boolean"},
        "friend": {"type": "string", "enum": ["Ross", "Joey"], "enumNames": ["R", "J"]},
        "hero": {"type": "string", "oneOf": [{"const": "h1", "title": "One"}, {"const": "h2"}]},
        "fish": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"anyOf": [
            {"const": "tuna"}, {"const": "cod"}, {"const": "eel"}]}},
        "tools": {"type": "array", "items": {"type": "string", "enum": ["saw"]}},
    }})
}

#[rstest]
#[case::least(json!({"name": "Ada"}), "")]
#[case::everything(json!({"name": "Ada", "mail": "a@b", "born": "2026-11-26", "at": "2026-11-26T10:00:00Z",
    "site": "https://x", "count": 9, "share": 0.5, "sure": false, "friend": "Joey", "hero": "h2",
    "fish": ["tuna", "eel"], "tools": []}), "")]
#[case::whole_numbers_are_numbers(json!({"name": "Ada", "share": -1}), "")]
#[case::missing(json!({}), "field \"name\" is missing")]
#[case::unknown(json!({"name": "Ada", "nmae": 1}), "there is no field \"nmae\"")]
#[case::short(json!({"name": "A"}), "wants text, at least 2 characters, at most 5 characters")]
#[case::long(json!({"name": "Adaaaa"}), "wants text")]
#[case::null(json!({"name": null}), "wants text")]
#[case::mail(json!({"name": "Ada", "mail": "ada"}), "wants text, email")]
#[case::date(json!({"name": "Ada", "born": "2026-13-01"}), "wants text, date")]
#[case::time(json!({"name": "Ada", "at": "2026-11-26"}), "wants text, date-time")]
#[case::uri(json!({"name": "Ada", "site": "x"}), "wants text, uri")]
#[case::text_for_a_number(json!({"name": "Ada", "count": "3"}), "wants a whole number, at least 1, at most 9")]
#[case::fraction(json!({"name": "Ada", "count": 1.5}), "wants a whole number")]
#[case::much(json!({"name": "Ada", "count": 10}), "wants a whole number")]
#[case::flag(json!({"name": "Ada", "sure": "yes"}), "wants true or false")]
#[case::friend(json!({"name": "Ada", "friend": "J"}), "wants one of \"Ross\" (R), \"Joey\" (J)")]
#[case::hero(json!({"name": "Ada", "hero": "One"}), "wants one of")]
#[case::no_fish(json!({"name": "Ada", "fish": []}), "wants a list of \"tuna\", \"cod\", \"eel\", at least 1 of them")]
#[case::all_fish(json!({"name": "Ada", "fish": ["tuna", "cod", "eel"]}), "wants a list of")]
#[case::fish_twice(json!({"name": "Ada", "fish": ["cod", "cod"]}), "wants a list of")]
#[case::no_object(json!(["Ada"]), "no JSON object")]
fn an_answer_fits_the_form_or_says_which_field_does_not(#[case] answer: Value, #[case] refused: &str) {
    let checked = check_answer(Some(&schema().to_string()), Some(&answer.to_string()));
    match checked {
        Ok(content) => {
            assert_eq!(refused, "", "{content:?}");
            assert_eq!(serde_json::from_str::<Value>(&content.unwrap()).unwrap(), answer);
        }
        Err(why) => assert!(!refused.is_empty() && why.to_string().contains(refused), "{why}"),
    }
}

#[test]
fn a_page_takes_no_content_and_a_form_needs_it() {
    assert_eq!(check_answer(None, None), Ok(None));
    assert_eq!(check_answer(None, Some("{}")), Err(Misfit::NoForm));
    assert_eq!(check_answer(Some(&schema().to_string()), None), Err(Misfit::NoContent));
    let long = json!({"type": "object", "properties": {"a": {"type": "string"}}}).to_string();
    let answer = json!({"a": "x".repeat(ANSWER_BYTES_MAX)}).to_string();
    assert_eq!(check_answer(Some(&long), Some(&answer)), Err(Misfit::TooLong));
}

#[test]
fn equal_answers_have_equal_bytes_however_they_are_written() {
    let schema = schema().to_string();
    let one = check_answer(Some(&schema), Some(r#"{"name":"Ada","count":3}"#));
    assert_eq!(one, check_answer(Some(&schema), Some("{ \"count\": 3,\n \"name\": \"\\u0041da\" }")));
}

fn form(property: &Value) -> Value {
    json!({"message": "?", "requestedSchema": {"type": "object", "properties": {"a": property}}})
}

/// A schema within a schema, so deep.
fn deep(levels: usize) -> Value {
    (0..levels).fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}))
}

#[rstest]
#[case::no_message(json!({"requestedSchema": {}}), Unfit::Message)]
#[case::long_message(json!({"message": "x".repeat(1_000_000), "requestedSchema": {}}), Unfit::Message)]
#[case::no_schema(json!({"message": "?"}), Unfit::Schema("there is none"))]
#[case::no_object(json!({"message": "?", "requestedSchema": [1]}), Unfit::Schema("it is no object"))]
#[case::array(json!({"message": "?", "requestedSchema": {"type": "array"}}), Unfit::Schema("its type is not object"))]
#[case::no_fields(json!({"message": "?", "requestedSchema": {"type": "object"}}), Unfit::Schema("it has no properties"))]
#[case::nested(form(&deep(1)), Unfit::Schema("a field is no text, number, flag or choice"))]
#[case::a_hundred_deep(form(&deep(100)), Unfit::Schema("it is nested too deep"))]
#[case::reference(form(&json!({"$ref": "https://x.example"})), Unfit::Schema("a field is no text, number, flag or choice"))]
#[case::free_list(form(&json!({"type": "array", "items": {"type": "string"}})), Unfit::Schema("a list is not one of given choices"))]
#[case::odd_choices(form(&json!({"type": "string", "enum": [1]})), Unfit::Schema("its choices are no texts, or more than 64"))]
#[case::large(form(&json!({"type": "string", "description": "x".repeat(SCHEMA_BYTES_MAX)})), Unfit::SchemaTooLong)]
#[case::script(json!({"mode": "url", "message": "?", "url": "javascript:alert(1)"}), Unfit::Url)]
#[case::file(json!({"mode": "url", "message": "?", "url": "file:///etc/passwd"}), Unfit::Url)]
#[case::long_url(json!({"mode": "url", "message": "?", "url": format!("https://x/{}", "y".repeat(2048))}), Unfit::Url)]
#[case::other_mode(json!({"mode": "voice", "message": "?"}), Unfit::Mode)]
#[case::odd_mode(json!({"mode": 3, "message": "?"}), Unfit::Mode)]
fn what_people_cannot_be_shown_whole_is_not_asked(#[case] params: Value, #[case] why: Unfit) {
    assert_eq!(Inquiry::read(&params), Err(why));
}

#[test]
fn too_many_fields_or_one_that_is_required_and_not_there_are_no_form() {
    let fields: serde_json::Map<String, Value> =
        (0..33).map(|at| (format!("f{at}"), json!({"type": "boolean"}))).collect();
    let many = json!({"type": "object", "properties": fields});
    assert_eq!(Form::read(&many), Err(Unfit::Schema("it has more than 32 fields")));
    let lost = json!({"type": "object", "properties": {}, "required": ["a"]});
    assert_eq!(Form::read(&lost), Err(Unfit::Schema("it requires a field that it does not have")));
}

#[test]
fn an_input_required_result_is_read_with_its_names_and_its_state() {
    let elicit = |params: Value| json!({"method": "elicitation/create", "params": params});
    let url = json!({"mode": "url", "message": "sign in", "url": "https://x.example/in"});
    let result = json!({"resultType": "input_required", "requestState": "opaque",
        "inputRequests": {"b": elicit(url), "a": elicit(form(&json!({"type": "string"})))}});
    let read = InputRequired::read(&result).unwrap();
    assert_eq!(read.questions.iter().map(|asked| asked.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((read.state.as_deref(), read.said.as_deref()), (Some("opaque"), None));
    assert_eq!(read.questions[1].inquiry.url(), Some("https://x.example/in"));
    let read = |change: Value| {
        let mut other = result.clone();
        for (key, value) in change.as_object().unwrap() {
            other[key] = value.clone();
        }
        InputRequired::read(&other).unwrap_err()
    };
    let sampling = json!({"a": {"method": "sampling/createMessage", "params": {}}});
    assert_eq!(read(json!({"inputRequests": sampling})), Unfit::Method("sampling/createMessage".into()));
    assert_eq!(read(json!({"inputRequests": {}})), Unfit::NothingAsked);
    assert_eq!(read(json!({"requestState": "x".repeat(STATE_BYTES_MAX + 1)})), Unfit::State);
    assert_eq!(read(json!({"requestState": 7})), Unfit::State);
    let key = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(read(json!({"inputRequests": {key: elicit(json!({}))}})), Unfit::Key);
}

#[test]
fn a_call_asks_so_many_questions_and_so_many_bytes() {
    let inquiry = |message: &str| Inquiry::Url { message: message.to_owned(), url: "https://x".to_owned() };
    let required = |many: usize| InputRequired::in_call(vec![inquiry("m"); many], "");
    let before = Inputs { rounds: vec![Round { required: required(3), answers: vec![None; 3] }] };
    assert_eq!(required(5).fits(&before), Ok(()));
    assert_eq!(required(6).fits(&before), Err(Unfit::TooMany));
    let escaped = InputRequired::in_call(vec![inquiry(&"\u{1}".repeat(INQUIRY_BYTES_MAX)); 8], "");
    assert_eq!(escaped.fits(&Inputs::default()), Err(Unfit::TooLong), "a control character is six bytes of JSON");
}

/// A runner that was taken over reports what it likes.
#[test]
fn what_was_not_read_within_bounds_is_refused_when_it_is_reported() {
    let page = |url: &str| Inquiry::Url { message: "open".into(), url: url.into() };
    let asked = |inquiry: Inquiry| InputRequired::in_call(vec![inquiry], "later").check();
    assert_eq!(asked(page("https://a.example/x")), Ok(()));
    assert_eq!(asked(page("")), Err(Unfit::Url));
    assert_eq!(asked(Inquiry::Url { message: "m".repeat(9000), url: "https://a".into() }), Err(Unfit::Message));
    let no_form = Inquiry::Form { message: "?".into(), schema: json!({"type": "string"}) };
    assert!(matches!(asked(no_form), Err(Unfit::Schema(_))));
    let Inquiry::Form { message, mut schema } = Inquiry::read(&form(&json!({"type": "string"}))).unwrap() else {
        unreachable!()
    };
    schema["junk"] = deep(120);
    assert_eq!(asked(Inquiry::Form { message, schema }), Err(Unfit::Schema("it is nested too deep")));
    let mut required = InputRequired::in_call(vec![page("https://a.example")], "later");
    required.said = Some("s".repeat(SAID_BYTES_MAX + 1));
    assert_eq!(required.check(), Err(Unfit::State));
    required.said = None;
    required.questions[0].key = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(required.check(), Err(Unfit::Key));
}

#[test]
fn an_answer_is_for_the_very_same_question() {
    let inquiry = Inquiry::read(&form(&json!({"type": "string"}))).unwrap();
    let required = InputRequired::in_call(vec![inquiry.clone()], "later");
    let round = Round { required, answers: vec![Some(r#"{"a":"x"}"#.to_owned())] };
    let inputs = Inputs { rounds: vec![round] };
    assert_eq!(inputs.answer_to(&inquiry), Some(Some(r#"{"a":"x"}"#)));
    let other = Inquiry::read(&form(&json!({"type": "string", "title": "T"}))).unwrap();
    assert_eq!(inputs.answer_to(&other), None);
    assert_eq!(inputs.resent(), None, "asked in the middle of the call, it is answered there");
    assert!(inputs.digest().unwrap().is_some() && Inputs::default().digest().unwrap().is_none());
}

#[test]
fn a_question_is_the_same_after_it_was_written_down_however_its_numbers_were_spelt() {
    let asked = Inquiry::read(&form(&json!({"type": "number", "minimum": 0.0, "maximum": 1000.0}))).unwrap();
    let written = crate::digest::canonical(&asked).unwrap();
    let read: Inquiry = serde_json::from_slice(&written).unwrap();
    assert_eq!(read, asked);
    assert_eq!(Inquiry::read(&form(&json!({"type": "number", "minimum": 0, "maximum": 1e3}))).unwrap(), asked);
}
