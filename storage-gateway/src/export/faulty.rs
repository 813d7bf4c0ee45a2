//! Seeded faults around any export.
