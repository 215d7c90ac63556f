//! Waiting for what no channel and no file descriptor tells: until it is so, and not for ever.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough that a passing test never meets it, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        thread::sleep(PAUSE);
    }
}

/// Asks until it is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually(what, || is_so().then_some(()));
}
