//! How sure a mean over a text is.

/// Nats and tokens of a stretch of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Block {
    sum: f64,
    tokens: f64,
}

/// A mean over predicted tokens, with a 95 % confidence interval from blocks of windows.
///
/// Tokens of a text are no independent samples, so that an interval from their variance is too narrow. Here windows, one after the other,
/// are put together to at most [`BLOCKS`](Self::BLOCKS) blocks; the mean is the ratio of the sums of all blocks, and its standard error
/// that of a ratio estimator: with S and n the sum and the tokens of a block, m the mean, and B blocks,
/// `√(B/(B-1) · Σ (S - m·n)²) / Σ n`. The interval is that times the 97.5 % quantile of Student's t with B - 1 degrees of freedom on each side.
/// It is the uncertainty of what text was chosen, not of the computation, which is exact.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMean {
    blocks: Vec<Block>,
    /// Windows in a whole block.
    windows: usize,
    /// Windows in the last one.
    last: usize,
}

impl Default for BlockMean {
    fn default() -> Self {
        Self { blocks: Vec::new(), windows: 1, last: 1 }
    }
}

impl BlockMean {
    /// Most blocks; where there are more windows, neighbours are put together.
    pub const BLOCKS: usize = 64;

    /// No windows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next window: the sum over its tokens, and how many there are.
    pub fn add(&mut self, sum: f64, tokens: usize) {
        let block = Block { sum, tokens: tokens as f64 };
        match self.blocks.last_mut() {
            Some(last) if self.last < self.windows => {
                *last = last.and(block);
                self.last += 1;
            }
            _ => {
                if self.blocks.len() == Self::BLOCKS {
                    let pairs = self.blocks.chunks_exact(2);
                    self.blocks = pairs.map(|pair| pair[0].and(pair[1])).collect();
                    self.windows *= 2;
                }
                self.blocks.push(block);
                self.last = 1;
            }
        }
    }

    /// The mean; NaN without tokens.
    pub fn mean(&self) -> f64 {
        let (sum, tokens) = self.total();
        sum / tokens
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Half the width of the interval; `None` for less than two blocks.
    pub fn half_width(&self) -> Option<f64> {
        let count = self.blocks.len();
        let degrees = count.checked_sub(1).filter(|degrees| *degrees > 0)?;
        let ((_, tokens), mean) = (self.total(), self.mean());
        let squares: f64 = self.blocks.iter().map(|block| (block.sum - mean * block.tokens).powi(2)).sum();
        let error = (squares * count as f64 / degrees as f64).sqrt() / tokens;
        Some(error * student(degrees))
    }

    fn total(&self) -> (f64, f64) {
        self.blocks.iter().fold((0.0, 0.0), |(sum, tokens), block| (sum + block.sum, tokens + block.tokens))
    }
}

impl Block {
    fn and(self, next: Self) -> Self {
        Self { sum: self.sum + next.sum, tokens: self.tokens + next.tokens }
    }
}

/// The 97.5 % quantile of Student's t distribution, of so many degrees of freedom: from the usual table, and beyond it that of the largest
/// number below which the table has.
fn student(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    match degrees {
        0 => f64::INFINITY,
        1..=30 => TABLE[degrees - 1],
        31..=39 => 2.042,
        40..=59 => 2.021,
        _ => 2.000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(windows: &[(f64, usize)]) -> BlockMean {
        let mut mean = BlockMean::new();
        windows.iter().for_each(|&(sum, tokens)| mean.add(sum, tokens));
        mean
    }

    #[test]
    fn by_hand() {
        assert!(of(&[]).mean().is_nan() && of(&[]).half_width().is_none());
        assert_eq!((of(&[(6.0, 3)]).mean(), of(&[(6.0, 3)]).half_width()), (2.0, None));
        // Means 1 and 3 of two tokens each: m = 2, residuals -2 and 2, error √(2/1 · 8) / 4 = 1.
        let two = of(&[(2.0, 2), (6.0, 2)]);
        assert_eq!((two.mean(), two.half_width()), (2.0, Some(12.706)));
        // Blocks that are alike leave no doubt.
        assert_eq!(of(&[(3.0, 3); 5]).half_width(), Some(0.0));
    }

    #[test]
    fn many_windows_become_blocks() {
        let windows: Vec<_> = (0..1000).map(|n| (((n * 7919) % 13) as f64, 1 + n % 3)).collect();
        let mean = of(&windows);
        assert!((33..=64).contains(&mean.blocks()), "{}", mean.blocks());
        let sum: f64 = windows.iter().map(|(sum, _)| sum).sum();
        let tokens: usize = windows.iter().map(|(_, tokens)| tokens).sum();
        assert!((mean.mean() - sum / tokens as f64).abs() < 1e-12);
        // Blocks of sixteen windows, but for the last.
        let direct = windows
            .chunks(16)
            .map(|part| part.iter().fold((0.0, 0), |(s, n), (sum, tokens)| (s + sum, n + tokens)));
        let direct: Vec<_> = direct.collect();
        assert_eq!(mean.blocks(), direct.len());
        let (b, m) = (direct.len() as f64, sum / tokens as f64);
        let squares: f64 = direct.iter().map(|(s, n)| (s - m * *n as f64).powi(2)).sum();
        let expected = 2.0 * (squares * b / (b - 1.0)).sqrt() / tokens as f64;
        assert!((mean.half_width().unwrap() - expected).abs() < 1e-12);
    }
}
