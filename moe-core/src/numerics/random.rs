//! Random numbers as a function of where they are used.

/// A number in `0..1` with 24 random bits, drawn by what it is for and not by when: the same seed and place give the same
/// number, whatever else was drawn. `place` may be a position, or layer, sequence, position and expert.
///
/// Each word is folded in by the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
pub fn uniform(seed: u64, place: &[u64]) -> f32 {
    let mut state = mix(seed.wrapping_add(GOLDEN));
    for word in place {
        state = mix(state.wrapping_add(GOLDEN) ^ word.wrapping_mul(GOLDEN));
    }
    (state >> 40) as f32 / (1u64 << 24) as f32
}

/// 2⁶⁴ over the golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_independence() {
        let n = 20_000u64;
        let draws: Vec<f32> = (0..n).map(|i| uniform(7, &[i])).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        // Sixteen bins of 1250: a deviation of 5 sigma is 175.
        let mut bins = [0i32; 16];
        draws.iter().for_each(|u| bins[(u * 16.0) as usize] += 1);
        assert!(bins.iter().all(|b| (b - 1250).abs() < 175), "{bins:?}");
        assert_ne!(uniform(7, &[1, 2]), uniform(7, &[2, 1]));
        assert_ne!(uniform(7, &[0]), uniform(7, &[0, 0]));
        assert_ne!(uniform(7, &[0]), uniform(8, &[0]));
    }
}
