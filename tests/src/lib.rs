//! Placeholder sentence.

pub mod nas;
