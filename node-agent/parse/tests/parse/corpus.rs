//! Files made by other programs, kept in `tests/corpus`.
