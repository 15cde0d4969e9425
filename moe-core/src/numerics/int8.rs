//! Products of integers: activations rounded to int8 block by block, times weights that are small integers times scales.

/// The least magnitude, 2⁻¹¹⁸, that the largest activation of a block may have without the block being taken for zeros: its
/// 127th part is a normal number, so that no rounding here is coarser than elsewhere.
pub const INT8_LEAST: f32 = f32::from_bits((127 - 118) << 23);

/// Rounds a block of activations to int8, as far as `q` has places: gives the scale `xs`, so that `x[i]` is about
/// `q[i] · xs`.
///
/// `xs = max|x| / 127`, and `q[i] = x[i] / xs` rounded to nearest even; a block whose largest magnitude is below
/// [`INT8_LEAST`] becomes zeros with `xs = 0`. Where an activation is not finite, `xs` is NaN, and nothing is said of q.
pub fn quantise_int8(x: &[f32], q: &mut [i8]) -> f32 {
    let most = x.iter().fold(0u32, |most, v| most.max(v.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(most);
    if !most.is_finite() {
        return f32::NAN;
    }
    if most < INT8_LEAST {
        q.fill(0);
        return 0.0;
    }
    let xs = most / 127.0;
    q.iter_mut().zip(x).for_each(|(q, x)| *q = (x / xs).round_ties_even() as i8);
    xs
}

/// A block of weights, element i of sub-block s being `(scale · scales[s]) · quants[i] - minimum · minima[s]`.
#[derive(Clone, Copy, Debug)]
pub struct IntegerBlock<'a> {
    /// The scale of the block.
    pub scale: f32,
    /// The scale of its minima; `None` for layouts without minima.
    pub minimum: Option<f32>,
    /// The integer scale of each sub-block, `[S]`; 1 where the layout has none.
    pub scales: &'a [i8],
    /// The minimum of each sub-block, `[S]`.
    pub minima: &'a [u8],
    /// The small integers, as many for each sub-block.
    pub quants: &'a [i16],
}

/// Adds the product of a block of activations `q · xs` ([`quantise_int8`]) with a block of weights to a sum.
///
/// ```text
/// s <- fma(f32(Σₛ scales[s] · Σ quants · q) · scale,     xs, s)
/// s <- fma(-(f32(Σₛ minima[s] · Σ q)       · minimum), xs, s)       where the layout has minima
/// ```
///
/// Sums of integers are exact, hence of no order; each is rounded to f32 once. A dot product is one such chain over the
/// blocks of a row, in order, from 0.
pub fn add_int8_block(s: f32, w: &IntegerBlock<'_>, q: &[i8], xs: f32) -> f32 {
    let sub = w.quants.len() / w.scales.len().max(1);
    let (mut products, mut minima) = (0i32, 0i32);
    for (i, (quants, q)) in w.quants.chunks(sub.max(1)).zip(q.chunks(sub.max(1))).enumerate() {
        let product: i32 = quants.iter().zip(q).map(|(w, q)| i32::from(*w) * i32::from(*q)).sum();
        products += i32::from(w.scales[i]) * product;
        minima += i32::from(w.minima[i]) * q.iter().map(|q| i32::from(*q)).sum::<i32>();
    }
    let s = (products as f32 * w.scale).mul_add(xs, s);
    match w.minimum {
        Some(minimum) => (-(minima as f32 * minimum)).mul_add(xs, s),
        None => s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_becomes_127() {
        let x = [0.5, -1.0, 0.25, 127.0, -127.0, 0.0, 2.5, 3.5];
        let mut q = [0; 8];
        assert_eq!(quantise_int8(&x, &mut q), 1.0);
        assert_eq!(q, [0, -1, 0, 127, -127, 0, 2, 4], "ties to even");
        for most in [INT8_LEAST, 1e-30, 0.3, f32::MAX] {
            let mut q = [0; 2];
            let xs = quantise_int8(&[-most, most / 3.0], &mut q);
            assert_eq!(q, [-127, 42], "{most}");
            assert!(xs.is_normal() && (f64::from(xs) * 127.0 / f64::from(most) - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn small_blocks_are_zero_and_others_must_be_finite() {
        let mut q = [9; 3];
        let below = f32::from_bits(INT8_LEAST.to_bits() - 1);
        assert_eq!(quantise_int8(&[below, -below, 1e-45], &mut q).to_bits(), 0);
        assert_eq!(q, [0; 3]);
        assert_eq!(INT8_LEAST, 2f32.powi(-118));
        assert!((INT8_LEAST / 127.0).is_normal());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantise_int8(&[1.0, bad, 2.0], &mut q).is_nan());
        }
    }

    #[test]
    fn a_block_by_hand() {
        let w = IntegerBlock {
            scale: 0.5,
            minimum: Some(0.25),
            scales: &[2, -3],
            minima: &[1, 4],
            quants: &[1, 2, 3, 4],
        };
        // 2 · (1·10 + 2·20) - 3 · (3·1 + 4·-2) = 115; minima 1 · 30 + 4 · -1 = 26.
        let s = add_int8_block(1.0, &w, &[10, 20, 1, -2], 2.0);
        assert_eq!(s, 1.0 + 115.0 * 0.5 * 2.0 - 26.0 * 0.25 * 2.0);
        assert_eq!(add_int8_block(1.0, &IntegerBlock { minimum: None, ..w }, &[10, 20, 1, -2], 2.0), 116.0);
    }
}
