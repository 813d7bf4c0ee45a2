//! Documents to pixels and text, in a child process with limits.

pub mod worker {
    //! What runs in the child process, and nowhere else.

    /// Serves the parent until it closes its end.
    pub fn main() {}
}
