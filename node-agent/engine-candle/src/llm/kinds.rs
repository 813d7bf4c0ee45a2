//! GGUF's kinds of storage: in which form each is held here, and how its blocks are taken apart (ggml, `ggml-common.h`).

use super::packed::{Form, Quants, half};

/// How tensors of a kind are held; none is rounded.
pub(super) fn form(kind: &str) -> Form {
    let quants = |wide, run, least| Form::Quants(Quants { wide, run, least });
    match kind {
        "F32" => Form::Floats,
        "F16" => Form::Half,
        "BF16" => Form::Brain,
        "Q4_0" | "Q4_1" | "Q4_K" => quants(false, 32, true),
        "Q2_K" | "Q3_K" => quants(false, 16, true),
        "Q5_1" | "Q5_K" => quants(true, 32, true),
        "Q5_0" | "Q8_0" | "Q8_K" => quants(true, 32, false),
        "Q6_K" => quants(true, 16, false),
        other => unreachable!("{other} was refused with the header"),
    }
}

/// Takes run `number` of a stored block apart: its quants into `out`, which is as long as the run, its scale and least value given
/// back. Quants that are held in four bits count from 0, so that their offset goes into the least value.
pub(super) fn take_apart(kind: &str, block: &[u8], number: usize, out: &mut [i8]) -> (f32, f32) {
    let half = |at: usize| half(u16::from_le_bytes([block[at], block[at + 1]]));
    // The run's first weight within the block.
    let first = number * out.len();
    let fill = |out: &mut [i8], quant: &dyn Fn(usize) -> i8| {
        out.iter_mut().enumerate().for_each(|(at, out)| *out = quant(at));
    };
    match kind {
        "Q4_0" => {
            fill(out, &|at| four(&block[2..], at));
            (half(0), -8.0 * half(0))
        }
        "Q4_1" => {
            fill(out, &|at| four(&block[4..], at));
            (half(0), half(2))
        }
        "Q5_0" => {
            fill(out, &|at| five(&block[2..], at) - 16);
            (half(0), 0.0)
        }
        "Q5_1" => {
            fill(out, &|at| five(&block[4..], at));
            (half(0), half(2))
        }
        "Q8_0" => {
            fill(out, &|at| block[2 + at].cast_signed());
            (half(0), 0.0)
        }
        "Q2_K" => {
            fill(out, &|at| two(&block[16..], first + at));
            let both = block[number];
            (half(80) * f32::from(both & 15), -half(82) * f32::from(both >> 4))
        }
        "Q3_K" => {
            let third = |weight: usize| ((block[weight % 32] >> (weight / 32)) & 1).cast_signed();
            fill(out, &|at| two(&block[32..], first + at) | third(first + at) << 2);
            let scale = half(108) * f32::from(scale_of_16(&block[96..], number) - 32);
            (scale, -4.0 * scale)
        }
        "Q4_K" => {
            fill(out, &|at| nibble(&block[16..], number, at));
            let (scale, least) = pair_of_8(&block[4..], number);
            (half(0) * scale, -half(2) * least)
        }
        "Q5_K" => {
            fill(out, &|at| nibble(&block[48..], number, at) | ((block[16 + at] >> number) & 1).cast_signed() << 4);
            let (scale, least) = pair_of_8(&block[4..], number);
            (half(0) * scale, -half(2) * least)
        }
        "Q6_K" => {
            // Of 128 weights each, the four times 32 are apart: low bits in two rows of bytes, high bits in one.
            fill(out, &|at| {
                let (part, quarter, column) = ((first + at) / 128, (first + at) % 128 / 32, (first + at) % 32);
                let low = (block[part * 64 + quarter % 2 * 32 + column] >> (quarter / 2 * 4)) & 15;
                let high = (block[128 + part * 32 + column] >> (quarter * 2)) & 3;
                (low | high << 4).cast_signed() - 32
            });
            (half(208) * f32::from(block[192 + number].cast_signed()), 0.0)
        }
        "Q8_K" => {
            fill(out, &|at| block[4 + first + at].cast_signed());
            (f32::from_le_bytes([block[0], block[1], block[2], block[3]]), 0.0)
        }
        other => unreachable!("{other} has no blocks"),
    }
}

/// Byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
fn four(bytes: &[u8], at: usize) -> i8 {
    ((bytes[at % 16] >> (at / 16 * 4)) & 15).cast_signed()
}

/// The low four bits of a block of 32 follow their fifth bits (bit `i` of the first four bytes).
fn five(bytes: &[u8], at: usize) -> i8 {
    four(&bytes[4..], at) | (((bytes[at / 8] >> (at % 8)) & 1) << 4).cast_signed()
}

/// A byte of every 32 has weights 32 apart, two bits each.
fn two(bytes: &[u8], weight: usize) -> i8 {
    ((bytes[weight / 128 * 32 + weight % 32] >> (weight % 128 / 32 * 2)) & 3).cast_signed()
}

/// Runs of 32 in pairs: the even one in the low halves of 32 bytes, the odd one in the high halves.
fn nibble(bytes: &[u8], number: usize, at: usize) -> i8 {
    ((bytes[number / 2 * 32 + at] >> (number % 2 * 4)) & 15).cast_signed()
}

/// One of 16 scales of six bits in twelve bytes: four bits in the first eight bytes, two in the last four.
fn scale_of_16(bytes: &[u8], number: usize) -> i8 {
    let low = (bytes[number % 8] >> (number / 8 * 4)) & 15;
    let high = (bytes[8 + number % 4] >> (number / 4 * 2)) & 3;
    (low | high << 4).cast_signed()
}

/// One of 8 scales and least values of six bits each in twelve bytes: the first four lie whole in eight bytes, whose two upper bits
/// belong to the last four.
fn pair_of_8(bytes: &[u8], number: usize) -> (f32, f32) {
    let (scale, least) = if number < 4 {
        (bytes[number] & 63, bytes[number + 4] & 63)
    } else {
        let both = bytes[number + 4];
        ((both & 15) | (bytes[number - 4] >> 6) << 4, both >> 4 | (bytes[number] >> 6) << 4)
    };
    (f32::from(scale), f32::from(least))
}
