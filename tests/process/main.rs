//! Real processes, killed with -9, frozen and asked to end in the middle of their work.

mod asked;
mod dashboards;
mod deployed;
mod hosts;
mod killed;
mod moved;
mod pages;
mod several;
mod streams;
mod traced;
mod up;
mod world;
