//! What the process leaves behind when it breaks: none of its memory, which holds keys, and no words that may hold one.

use std::io::Write as _;
use std::panic::PanicHookInfo;

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// Comes first in `main`: from now on a crash leaves no core on the node, no other process of the same user reads this one's
/// memory, and a panic says where it was. An error: the kernel refuses, and no key may be read.
pub fn keep_to_itself() -> nix::Result<()> {
    // A closed stderr is nobody's problem: the journal shows where the run stopped.
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "error   the runner broke at {}", last_words(panic));
    }));
    // A core that the node pipes into a handler of its own knows no limit: it is this that stops it.
    set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Where it was, and what stands in the program's own text. Words that were put together may hold anything, and nothing can be
/// redacted here: what knows the values may be what broke.
fn last_words(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(|| "a place unknown".to_owned(), ToString::to_string);
    match panic.payload().downcast_ref::<&'static str>() {
        Some(words) => format!("{place}: {words}"),
        None => place,
    }
}
