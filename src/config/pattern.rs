//! Regular expressions of spec files: linear in the line whatever they say, and bounded in memory.

use regex::bytes::{RegexSet, RegexSetBuilder};

/// What one pattern may take, in bytes, so that it does not take the memory of the whole agent.
pub(super) const PATTERN_BYTES_MAX: usize = 1 << 20;

/// What the alerts of one service may take together, in bytes.
const SET_BYTES_MAX: usize = 4 << 20;

/// Compiles the patterns of the alerts of a service, to be looked for in one pass over each line.
///
/// # Errors
/// One of them is none, or they are too large together.
pub fn alert_set<'a>(
    patterns: impl IntoIterator<Item = &'a str>,
) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns).size_limit(SET_BYTES_MAX).build()
}
