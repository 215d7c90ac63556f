//! How a line stands in the file.

use std::time::SystemTime;

use jiff::Timestamp;

use super::Stream;
use crate::domain::spec::LogFormat;
use crate::domain::time::UnixMicros;

/// The time of a batch, written once for all of its lines.
#[derive(Debug)]
pub(super) struct Stamp {
    text: String,
}

impl Stamp {
    pub(super) fn now() -> Self {
        let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        Self { text: format!("{now:.9}") }
    }
}

/// Writes pieces of one stream and one batch.
#[derive(Debug)]
pub(super) struct Writer {
    format: LogFormat,
    whole: Vec<u8>,
    part: Vec<u8>,
}

impl Writer {
    pub(super) fn new(format: LogFormat, stamp: &Stamp, stream: Stream) -> Self {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let head = |tag| format!("{} {name} {tag} ", stamp.text).into_bytes();
        match format {
            LogFormat::Cri => Self { format, whole: head('F'), part: head('P') },
            LogFormat::Raw => Self { format, whole: Vec::new(), part: Vec::new() },
        }
    }

    /// Appends one piece. A part has no newline of its own in the raw format.
    pub(super) fn push(&self, text: &[u8], part: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(if part { &self.part } else { &self.whole });
        out.extend_from_slice(text);
        if !part || self.format == LogFormat::Cri {
            out.push(b'\n');
        }
    }
}

/// A line of a file, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written<'a> {
    pub(super) at: UnixMicros,
    pub(super) text: &'a str,
}

/// Reads what [`Writer`] wrote in the CRI format; `None` for anything else.
pub(super) fn read_cri(line: &str) -> Option<Written<'_>> {
    let mut fields = line.splitn(4, ' ');
    let (time, _stream, _tag, text) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let at = time.parse::<Timestamp>().ok()?.as_microsecond();
    Some(Written { at: UnixMicros(u64::try_from(at).ok()?), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat, part: bool) -> String {
        let stamp = Stamp { text: "2026-11-22T14:02:10.000000001Z".to_owned() };
        let mut out = Vec::new();
        Writer::new(format, &stamp, Stream::Stderr).push(b"a b", part, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cri_is_time_stream_tag_and_line() {
        assert_eq!(written(LogFormat::Cri, false), "2026-11-22T14:02:10.000000001Z stderr F a b\n");
        assert_eq!(written(LogFormat::Cri, true), "2026-11-22T14:02:10.000000001Z stderr P a b\n");
    }

    #[test]
    fn raw_is_what_the_service_wrote() {
        assert_eq!(written(LogFormat::Raw, false), "a b\n");
        assert_eq!(written(LogFormat::Raw, true), "a b");
    }

    #[test]
    fn a_time_always_has_nine_digits_and_is_read_again() {
        let mut out = Vec::new();
        Writer::new(LogFormat::Cri, &Stamp::now(), Stream::Stdout).push(b"x y", false, &mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.find('Z'), Some(29), "{line}");
        assert_eq!(read_cri(line.trim_end()).unwrap().text, "x y");
    }
}
