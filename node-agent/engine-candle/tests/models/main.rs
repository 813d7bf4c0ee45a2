//! Whole models through the engine's seam: tiny ones with seeded random weights that the tests write themselves, and the starter
//! models where they have been fetched (`INGLE_TEST_MODELS`, else `.cache/models` of the repository).
#![allow(clippy::unwrap_used, reason = "in a test a failed unwrap is the failure")]

mod golden;
mod language;
mod ocr;
mod pages;
mod refusals;
mod starter;
mod tiny;
