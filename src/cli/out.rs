//! Data goes to stdout, everything else to stderr; a reader that went away ends a stream and is no error.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use super::args::Output;
use super::error::CliError;
use super::json;
use super::screen::error::error_text;

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
    pub fn json(self, document: &impl Serialize) {
        self.line(&json!(document).to_string());
    }

    /// Prints one document over several lines.
    pub fn json_pretty(self, document: &serde_json::Value) {
        self.line(&format!("{document:#}"));
    }

    /// Prints a document; as lines the members of its main list, or all of it where it has none.
    pub fn document(self, document: &serde_json::Value, list: &str) {
        match (self.form, document[list].as_array()) {
            (Output::Jsonl, Some(rows)) => rows.iter().for_each(|row| self.line(&json::line(row))),
            (Output::Jsonl, None) => self.line(&json::line(document)),
            _ => self.line(&json::pretty(document)),
        }
    }

    /// Prints a message.
    pub fn note(self, text: &str) {
        let mut stderr = io::stderr().lock();
        drop(writeln!(stderr, "{text}")); // Nobody is left to be told that nobody listens.
    }

    /// Prints an error.
    pub fn error(self, error: &CliError) {
        let text = match (self.is_text(), &error.instead) {
            (true, Some(instead)) => instead.screen.clone(),
            (true, None) => error_text(error, error_width()),
            (false, Some(instead)) => instead.document.to_string(),
            (false, None) => json!(json::error::error_json(error)).to_string(),
        };
        self.note(text.trim_end());
    }

    /// Says whether the reader of stdout has gone away.
    pub fn reader_gone(self) -> bool {
        READER_GONE.load(Ordering::Relaxed)
    }
}

/// Returns the width at which tables are cut: that of the terminal, or none.
pub fn width() -> Option<u16> {
    width_of(io::stdout())
}

/// Returns the width at which messages are cut.
pub fn error_width() -> Option<u16> {
    width_of(io::stderr())
}

fn width_of(stream: impl IsTerminal + std::os::fd::AsFd) -> Option<u16> {
    let size = stream.is_terminal().then(|| rustix::termios::tcgetwinsize(&stream).ok());
    size.flatten().map(|size| size.ws_col).filter(|columns| *columns > 0)
}
