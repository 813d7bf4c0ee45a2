//! Files made for tests, byte by byte where encoders would refuse.

pub(crate) mod pdf;
pub(crate) mod picture;
pub(crate) mod tiff;

/// A zlib stream of `count` zeros: one literal, then matches of 258 bytes at distance 1 (RFC 1951, 3.2.6), about 160 times
/// shorter than what it unpacks to.
pub(crate) fn deflated_zeros(count: usize) -> Vec<u8> {
    let mut bits = Bits { bytes: vec![0x78, 0x9c], held: 0, count: 0 };
    bits.put(0b011, 3);
    // The literal 0 is 00110000, the length 258 is 11000101, the distance 1 is 00000; codes go out from their highest bit.
    bits.code(0b0011_0000, 8);
    for _ in 0..(count - 1) / 258 {
        bits.code(0b1100_0101, 8);
        bits.code(0, 5);
    }
    for _ in 0..(count - 1) % 258 {
        bits.code(0b0011_0000, 8);
    }
    bits.code(0, 7);
    bits.put(0, (8 - bits.count) % 8);
    let adler = ((count % 65_521) as u32) << 16 | 1;
    bits.bytes.extend(adler.to_be_bytes());
    bits.bytes
}

struct Bits {
    bytes: Vec<u8>,
    held: u8,
    count: u32,
}

impl Bits {
    /// The lowest bit first.
    fn put(&mut self, value: u32, bits: u32) {
        for bit in 0..bits {
            self.held |= ((value >> bit & 1) as u8) << self.count;
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(std::mem::take(&mut self.held));
                self.count = 0;
            }
        }
    }

    fn code(&mut self, code: u32, bits: u32) {
        (0..bits).rev().for_each(|bit| self.put(code >> bit & 1, 1));
    }
}
