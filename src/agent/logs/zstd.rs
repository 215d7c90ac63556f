//! Zstandard, with a coder in Rust: no C library is linked for it.

use std::io::{self, Read, Write};

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress as encode};

/// Writes `source` as one frame.
///
/// # Errors
/// Of either end; what was written until then is of no use.
pub(super) fn compress(source: impl Read, target: impl Write) -> io::Result<()> {
    let mut error = None;
    let mut failed = None;
    // The coder panics on an error of either end, so it is not told of one.
    let source = Calm { inner: source, error: &mut error };
    let target = Calm { inner: target, error: &mut failed };
    encode(source, target, CompressionLevel::Fastest);
    error.or(failed).map_or(Ok(()), Err)
}

/// Returns what `source`, one frame, holds.
///
/// # Errors
/// It is no frame, or one that needs more memory than a decoder gives.
pub(super) fn decoder<R: Read>(source: R) -> io::Result<impl Read> {
    StreamingDecoder::new(source).map_err(io::Error::other)
}

/// Ends or swallows everything after the first error, and keeps that.
struct Calm<'a, T> {
    inner: T,
    error: &'a mut Option<io::Error>,
}

impl<T> Calm<'_, T> {
    fn or_keep<V>(&mut self, result: io::Result<V>, otherwise: V) -> io::Result<V> {
        Ok(result.unwrap_or_else(|error| {
            *self.error = Some(error);
            otherwise
        }))
    }
}

impl<R: Read> Read for Calm<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = match &self.error {
            None => self.inner.read(bytes),
            Some(_) => Ok(0),
        };
        self.or_keep(read, 0)
    }
}

impl<W: Write> Write for Calm<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &self.error {
            None => self.inner.write_all(bytes),
            Some(_) => Ok(()),
        };
        self.or_keep(written, ())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_is_read_again_and_smaller() {
        let text: String = (0..20_000).map(|n| format!("line {n} of a log\n")).collect();
        let mut packed = Vec::new();
        compress(text.as_bytes(), &mut packed).unwrap();
        assert!(packed.len() * 3 < text.len(), "{} of {}", packed.len(), text.len());
        let mut read = String::new();
        decoder(packed.as_slice()).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
    }

    #[test]
    fn an_error_of_either_end_is_told_and_nothing_panics() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(compress(Broken, Vec::new()).is_err());
        assert!(compress(&b"text"[..], Broken).is_err());
        assert!(decoder(&b"no frame"[..]).is_err());
    }
}
