//! One file per command: its options, its calls, what it prints.

pub(crate) mod chat;
pub(crate) mod cluster;
pub(crate) mod completions;
mod drain;
pub(crate) mod embed;
mod explaining;
pub(crate) mod jobs;
pub(crate) mod man;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod ocr;
mod patience;
pub(crate) mod sampling;
pub(crate) mod status;
pub(crate) mod submit;
mod swap;
pub(crate) mod wait;
pub(crate) mod watching;
