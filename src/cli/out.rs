//! Data goes to stdout, everything else to stderr; a reader that went away ends a stream and is no error.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::Output;
use super::error::CliError;

static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Where a command prints, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// The form that was asked for.
    pub form: Output,
}

impl Out {
    /// Says whether people read it.
    pub fn is_text(self) -> bool {
        self.form == Output::Text
    }

    /// Prints data, as it is.
    pub fn data(self, text: &str) {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        if written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            READER_GONE.store(true, Ordering::Relaxed);
        }
    }

    /// Prints one line of data.
    pub fn line(self, text: &str) {
        self.data(&format!("{text}\n"));
    }

    /// Prints one document on a line of its own.
    pub fn json(self, document: &serde_json::Value) {
        self.line(&document.to_string());
    }

    /// Prints one document over several lines.
    pub fn json_pretty(self, document: &serde_json::Value) {
        self.line(&format!("{document:#}"));
    }

    /// Prints a message.
    pub fn note(self, text: &str) {
        let mut stderr = io::stderr().lock();
        drop(writeln!(stderr, "{text}")); // Nobody is left to be told that nobody listens.
    }

    /// Prints an error.
    pub fn error(self, error: &CliError) {
        match self.is_text() {
            true => self.note(error.text().trim_end()),
            false => self.note(&error.json().to_string()),
        }
    }

    /// Says whether the reader of stdout has gone away.
    pub fn reader_gone(self) -> bool {
        READER_GONE.load(Ordering::Relaxed)
    }
}

/// Returns the width at which tables are cut: that of the terminal, or none.
pub fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|w| *w > 0)
}
