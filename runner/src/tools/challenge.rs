//! What a server says that it misses when it refuses a request (RFC 9110 section 11.6.1, RFC 6750, RFC 9728). Pure. All
//! of it is the server's word: it is shown to people, and nothing that it names is fetched.

/// A `WWW-Authenticate` header, as far as people can use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// `Bearer`, `Basic` ..
    pub scheme: String,
    /// Where the server says what its authorization server is (RFC 9728).
    pub resource_metadata: Option<String>,
    pub scope: Option<String>,
    pub error: Option<String>,
    pub error_description: Option<String>,
}

impl Challenge {
    /// Reads the first challenge of a header, and what it can of one that is not well-formed.
    #[must_use]
    pub fn read(header: &str) -> Self {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let mut challenge = Self { scheme: scheme.to_owned(), ..Self::default() };
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = value_of(after);
            let field = match name.trim_matches([' ', ',', '\t']).to_ascii_lowercase().as_str() {
                "resource_metadata" => Some(&mut challenge.resource_metadata),
                "scope" => Some(&mut challenge.scope),
                "error" => Some(&mut challenge.error),
                "error_description" => Some(&mut challenge.error_description),
                _ => None,
            };
            if let Some(field) = field {
                field.get_or_insert(value);
            }
            rest = after;
        }
        challenge
    }

    /// What goes on after 'it asks for authorization'. `shown` makes of the server's words what may be shown of them.
    #[must_use]
    pub fn in_words(&self, shown: &dyn Fn(&str) -> String) -> String {
        let part = |words: &str, said: Option<&str>| {
            let said = said.map(shown).filter(|said| !said.is_empty());
            said.map(|said| format!("{words} {said}"))
        };
        let parts = [
            part("scheme", Some(&self.scheme)),
            part("scopes", self.scope.as_deref()),
            part("its metadata (RFC 9728, not fetched) at", self.resource_metadata.as_deref()),
            part("error", self.error.as_deref()),
            part("because", self.error_description.as_deref()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { String::new() } else { format!(", and says: {}", parts.join(", ")) }
    }
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn challenge(scheme: &str, resource_metadata: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge {
            scheme: scheme.to_owned(),
            resource_metadata: resource_metadata.map(str::to_owned),
            scope: scope.map(str::to_owned),
            ..Challenge::default()
        }
    }

    #[rstest]
    #[case::of_mcp(
        r#"Bearer resource_metadata="https://a.example/.well-known/oauth-protected-resource", scope="read write""#,
        challenge("Bearer", Some("https://a.example/.well-known/oauth-protected-resource"), Some("read write"))
    )]
    #[case::unquoted(
        "bearer Scope=read,resource_metadata=https://a.example/x?y=z",
        challenge("bearer", Some("https://a.example/x?y=z"), Some("read"))
    )]
    #[case::escaped(r#"Bearer realm="a\"b, scope=no", scope="\r\e""#, challenge("Bearer", None, Some("re")))]
    #[case::twice("Bearer scope=a, scope=b", challenge("Bearer", None, Some("a")))]
    #[case::a_scheme_alone("Basic", challenge("Basic", None, None))]
    #[case::endless(r#"Bearer scope="read"#, challenge("Bearer", None, Some("read")))]
    #[case::nothing("", challenge("", None, None))]
    fn a_header_is_read_as_far_as_it_can_be(#[case] header: &str, #[case] expected: Challenge) {
        assert_eq!(Challenge::read(header), expected);
    }

    #[test]
    fn words_hold_what_the_server_said_and_nothing_for_what_it_did_not() {
        let said = Challenge::read(r#"Bearer error="invalid_token", error_description="it expired", scope="read""#);
        let words = said.in_words(&|said| said.to_uppercase());
        assert_eq!(words, ", and says: scheme BEARER, scopes READ, error INVALID_TOKEN, because IT EXPIRED");
        assert_eq!(Challenge::read("").in_words(&str::to_owned), "");
    }
}
