//! The log thread on real pipes.
