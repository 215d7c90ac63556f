//! An archive of one program, the same bytes each time.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK: usize = 512;

/// Returns a `.tar.gz` with a program and nothing else.
pub(super) fn with_program(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755");
    put(124, &format!("{:011o}", bytes.len()));
    put(136, "00000000000"); // Its time: none, so that its digest is known.
    put(156, "0");
    put(257, "ustar\x0000");
    // The checksum counts its own place as blanks.
    put(148, "        ");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let padding = bytes.len().next_multiple_of(BLOCK) - bytes.len();
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&header)?;
    packed.write_all(bytes)?;
    packed.write_all(&vec![0; padding + 2 * BLOCK])?;
    packed.finish()
}
