//! How many places an expert has.

use moe_core::{Error, Result};

use crate::decimal;

/// How a fractional number of places becomes a whole one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the next greater: V-MoE, NLLB.
    #[default]
    Up,
    /// To the next smaller.
    Down,
    /// To the nearest, halves to the even one: Flaxformer, V-MoE on request.
    HalfEven,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Places {
    Absolute(usize),
    OfTokens(f64),
    OfChoices(f64),
}

/// The number of places C that each expert has for one sequence.
///
/// | reference | C | written |
/// |---|---|---|
/// | Switch, [2101.03961], section 2.2; Flaxformer | `max(min, round(f·T/E))`, whatever k | `Capacity::factor_of_tokens(f).rounded(HalfEven).at_least(min)` |
/// | V-MoE, [2106.05974] | `⌈f·T·k/E⌉`, then up to a multiple of 4 | `Capacity::factor_of_choices(f).multiple_of(4)` |
/// | Expert choice, [2202.09368] | `c·T/E` | `Capacity::factor_of_tokens(c)` |
///
/// With f = 1, a factor of tokens has room for one choice of every token, a factor of choices for all of them, if the load is
/// even. Rounding comes first, then the minimum, then the multiple.
///
/// The product is exact: the formula is the papers', and its factor the decimal that was written, 11/10 for 1.1 (of an f64, the
/// shortest decimal that reads back to it; an f32 that is widened has others). The references compute it in
/// floating point, each in its own order (V-MoE, Megatron, DeepSpeed), and are at times one place above or below.
///
/// Padding counts neither as a token nor as a choice; the references, whose shapes are static, count it.
///
/// [2101.03961]: https://arxiv.org/abs/2101.03961
/// [2106.05974]: https://arxiv.org/abs/2106.05974
/// [2202.09368]: https://arxiv.org/abs/2202.09368
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    places: Places,
    rounding: Rounding,
    minimum: usize,
    multiple: usize,
}

impl Capacity {
    /// `n` places, however long the sequence.
    pub const fn absolute(n: usize) -> Self {
        Self::of(Places::Absolute(n))
    }

    /// `factor · T / E` places, rounded up, for a sequence of T tokens.
    pub const fn factor_of_tokens(factor: f64) -> Self {
        Self::of(Places::OfTokens(factor))
    }

    /// `factor · N / E` places, rounded up, for a sequence whose tokens make N choices in all: T·k under top-k.
    pub const fn factor_of_choices(factor: f64) -> Self {
        Self::of(Places::OfChoices(factor))
    }

    const fn of(places: Places) -> Self {
        Self { places, rounding: Rounding::Up, minimum: 0, multiple: 1 }
    }

    /// The same, rounded otherwise.
    pub const fn rounded(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The same, but no fewer than `minimum`.
    pub const fn at_least(self, minimum: usize) -> Self {
        Self { minimum, ..self }
    }

    /// The same, rounded up to a multiple in the end.
    pub const fn multiple_of(self, multiple: usize) -> Self {
        Self { multiple, ..self }
    }

    /// Whether the number of places is the same for every sequence.
    pub fn is_absolute(&self) -> bool {
        matches!(self.places, Places::Absolute(_))
    }

    /// The number of places for a sequence of `tokens` that make `choices` in all.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if the settings are [not valid](Self::check), or leave no place at all, as a small factor rounded
    /// down may for a short sequence ([`at_least`](Self::at_least) helps).
    pub fn places(&self, tokens: usize, choices: usize, experts: usize) -> Result<usize> {
        self.check()?;
        let share = |factor, n| decimal::share(factor, n, experts, self.rounding);
        let places = match self.places {
            Places::Absolute(n) => n,
            Places::OfTokens(factor) => share(factor, tokens),
            Places::OfChoices(factor) => share(factor, choices),
        };
        let places = places.max(self.minimum);
        if places == 0 {
            return Err(Error::Router {
                setting: "capacity",
                expected: "at least 1 place an expert".into(),
                found: format!("0 for {tokens} tokens, {choices} choices and {experts} experts"),
            });
        }
        Ok(places.checked_next_multiple_of(self.multiple).unwrap_or(usize::MAX))
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if a factor is not finite and positive, an absolute capacity without minimum is 0, or the multiple is 0.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |setting, expected: &str, found| Err(Error::Router { setting, expected: expected.into(), found });
        match self.places {
            Places::Absolute(n) if n.max(self.minimum) == 0 => {
                wrong("capacity", "at least 1 place an expert", n.to_string())
            }
            Places::OfTokens(f) | Places::OfChoices(f) if !(f.is_finite() && f > 0.0) => {
                wrong("capacity factor", "a finite number above 0", f.to_string())
            }
            _ if self.multiple == 0 => wrong("capacity multiple", "at least 1", "0".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_in_their_order() {
        let c = Capacity::factor_of_choices(1.05);
        assert_eq!(c.places(5, 10, 4).unwrap(), 3);
        assert_eq!(c.rounded(Rounding::Down).places(5, 10, 4).unwrap(), 2);
        assert_eq!(Capacity::factor_of_tokens(1.0).rounded(Rounding::HalfEven).places(10, 0, 4).unwrap(), 2);
        assert_eq!(Capacity::factor_of_tokens(1.0).rounded(Rounding::HalfEven).places(14, 0, 4).unwrap(), 4);
        assert_eq!(c.at_least(5).multiple_of(4).places(5, 10, 4).unwrap(), 8);
        assert_eq!(Capacity::absolute(3).places(0, 0, 9).unwrap(), 3);
        assert_eq!(Capacity::factor_of_tokens(1e300).multiple_of(4).places(9, 9, 2).unwrap(), usize::MAX);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for f in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Capacity::factor_of_tokens(f).check().is_err(), "{f}");
        }
        assert!(Capacity::absolute(0).check().is_err());
        assert!(Capacity::absolute(0).at_least(1).check().is_ok());
        assert!(Capacity::absolute(1).multiple_of(0).check().is_err());
        let error = Capacity::factor_of_tokens(1.0).rounded(Rounding::Down).places(1, 2, 8).unwrap_err();
        assert!(error.to_string().contains("expected at least 1 place an expert, found 0 for 1 tokens"));
    }
}
