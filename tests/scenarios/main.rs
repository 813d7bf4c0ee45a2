//! Whole clusters in one process: what people do with one, and what it does about what people do to their files.

mod bad_input;
mod embedding;
mod generating;
mod interactive;
mod meeting;
mod mixed;
mod nas;
mod people;
mod reading;
mod sharing;
mod steering;
mod streams;
mod surface;
mod watching;
mod weights;
