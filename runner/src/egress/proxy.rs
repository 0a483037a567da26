//! What the HTTP client says of a proxy that opens no way, in words for whoever runs it. The client's own errors of that kind
//! are not public, so that their words are what they are known by; tests drive each of them.

/// What one error of a chain means, if it is about the proxy.
pub fn in_words(error: &str) -> Option<&'static str> {
    Some(match error.strip_prefix("tunnel error: ")? {
        "proxy authorization required" => {
            "the installation's egress proxy wants to know who asks (407), and is told nothing: have it let runner pods \
             through without a password"
        }
        "proxy response headers too long" => {
            "the installation's egress proxy answered with more than it may: is it an HTTP proxy?"
        }
        "unexpected end of file" => "the installation's egress proxy hung up before it opened a way there",
        "failed to create underlying connection" => "the installation's egress proxy cannot be reached",
        "io error establishing tunnel" => "the installation's egress proxy broke off before it opened a way there",
        _ => {
            "the installation's egress proxy did not open a way there: its log says why, and whether it allows this host; \
             or it is no HTTP proxy"
        }
    })
}
