//! Real processes, killed with -9, frozen and asked to end in the middle of their work.

mod asked;
mod deployed;
mod killed;
mod pages;
mod several;
mod streams;
mod traced;
mod up;
mod world;
