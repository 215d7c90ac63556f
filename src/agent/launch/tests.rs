//! Starts prepared on real files.
