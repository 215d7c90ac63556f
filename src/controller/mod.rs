//! The second head.
