//! `mixtral bench`: [`layer`] times a layer, [`model`] a model; [`limits`] is what they are compared with, and [`chart`] draws.

mod chart;
mod layer;
mod limits;
mod model;

use serde::Serialize;

use crate::args::Bench;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;

pub(crate) fn run(args: &Bench, interrupt: &Interrupt) -> Result<()> {
    let done = interrupt.during(|| match args.layer {
        Some(shape) => layer::run(args, shape, interrupt),
        None => model::run(args, interrupt),
    })?;
    Output::new().text(&done.text)?;
    if done.interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

/// What there is to print.
struct Done {
    text: String,
    /// Some cases or rounds were not measured, because the user wished an end.
    interrupted: bool,
}

impl Done {
    /// What the cases that were measured came to, as JSON or as a table; of so many where there would have been more to measure.
    fn new<C: Serialize>(
        args: &Bench,
        cases: &[C],
        interrupted: Option<usize>,
        table: impl FnOnce() -> String,
    ) -> Result<Self> {
        let mut text = match args.json {
            true => serde_json::to_string_pretty(cases).map_err(std::io::Error::other)? + "\n",
            false if cases.is_empty() => String::new(),
            false => table(),
        };
        if let Some(of) = interrupted.filter(|_| !args.json) {
            text += &format!("interrupted: {} of {of} cases measured\n", cases.len());
        }
        Ok(Self { text, interrupted: interrupted.is_some() })
    }
}

/// The median of some figures, and the least and the greatest.
#[derive(Clone, Copy, Debug)]
struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    /// Of at least one figure.
    fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self { least: at(0), median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, greatest: at(last) }
    }
}

/// Rounds for a batch of so many tokens.
fn rounds(args: &Bench, tokens: usize) -> usize {
    args.rounds.map_or(if tokens <= 32 { 9 } else { 5 }, usize::from)
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn median_least_and_greatest() {
        let Spread { least, median, greatest } = Spread::of(&[3.0, 1.0, 2.0, 10.0, 0.5]);
        assert_eq!((least, median, greatest), (0.5, 2.0, 10.0));
        assert_eq!(Spread::of(&[7.0]).median, 7.0);
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]).median, 3.0);
    }
}
