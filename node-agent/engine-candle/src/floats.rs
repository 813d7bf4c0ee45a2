//! Buffers of floats for registers: they begin at a cache line and keep their memory from one use to the next.

/// Floats that begin at a cache line: wide registers then never straddle two.
#[derive(Debug, Default, Clone)]
pub(crate) struct Floats {
    store: Vec<f32>,
    start: usize,
    length: usize,
}

/// Floats in a cache line of 64 bytes.
const LINE: usize = 16;

impl Floats {
    /// Makes it `length` long. What it holds then is unspecified.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.store.len() < length + LINE {
            // Made anew instead of grown: nothing is copied, and zeroed pages come from the system untouched.
            self.store = Vec::new();
            self.store = vec![0.0; length + LINE];
            self.start = self.store.as_ptr().align_offset(64).min(LINE);
        }
        self.length = length;
    }

    /// Bytes that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.store.len() * size_of::<f32>()
    }

    /// A copy of `values`.
    pub(crate) fn from_slice(values: &[f32]) -> Self {
        let mut floats = Self::default();
        floats.resize(values.len());
        floats.copy_from_slice(values);
        floats
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.store[self.start..self.start + self.length]
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.store[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_begin_at_cache_lines_and_keep_their_memory() {
        let mut floats = Floats::from_slice(&[1.0, 2.0]);
        assert_eq!(&*floats, [1.0, 2.0]);
        floats.resize(100_000);
        let begin = floats.as_ptr();
        assert_eq!(begin.align_offset(64), 0);
        floats.resize(10);
        floats.resize(99_999);
        assert_eq!((floats.as_ptr(), floats.len()), (begin, 99_999));
    }
}
