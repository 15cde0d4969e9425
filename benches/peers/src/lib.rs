//! What contestants share: the cases they are given and the lines they answer.
//!
//! A contestant is a program `NAME DIRECTORY [OPTION…]` that maps or loads `DIRECTORY/model.safetensors`, reads the tokens and
//! their experts from `DIRECTORY/inputs.safetensors`, says `ready` and what it is, and then answers lines:
//!
//! | line | answer |
//! |---|---|
//! | `run TOKENS VARIANT CALLS` | seconds a call, over CALLS calls with VARIANT, VARIANT + 1, … |
//! | `output TOKENS VARIANT PATH` | `ok`, the output being written to PATH as raw little-endian f32 |
//! | `limits` | floating-point operations and bytes read a second (of ours alone) |
//!
//! Anything else that it answers is why it could not. Contestants with whole models answer other lines, which `ours_model.rs` has.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, io};

use moe_kernels::{Activations, Backend, limits};
use safetensors::SafeTensors;

/// Whatever goes wrong ends a contestant, or its line.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A batch of tokens and who works on them.
#[derive(Clone, Debug)]
pub struct Case {
    /// T.
    pub tokens: usize,
    /// k.
    pub chosen: usize,
    /// Hidden states, `[T, D]`.
    pub x: Vec<f32>,
    /// Experts, `[T, k]`.
    pub experts: Vec<u32>,
    /// Weights of their outputs, `[T, k]`.
    pub weights: Vec<f32>,
}

impl Case {
    /// Token, expert and weight of each assignment.
    pub fn assignments(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let pairs = self.experts.iter().zip(&self.weights).enumerate();
        pairs.map(|(i, (&expert, &weight))| (i / self.chosen, expert as usize, weight))
    }
}

/// An implementation of the layer's experts.
pub trait Contestant {
    /// Makes ready for a case: what a model would hold already in that form. Not timed.
    fn prepare(&mut self, case: &Case) -> Result<()>;

    /// Computes `y[t] = Σ weight · expert(x[t])`, grouping by expert included. Timed.
    fn run(&mut self) -> Result<()>;

    /// The `y` of the last run, `[T, D]`.
    fn output(&self) -> Result<Vec<f32>>;

    /// Floating-point operations and bytes read a second of which this machine is capable now.
    fn limits(&mut self) -> Result<(f64, f64)> {
        Err("measures no limits".into())
    }
}

/// What this machine can do at most, measured when asked.
pub struct Limits {
    backend: Backend,
    peak: Activations,
    memory: Vec<u8>,
}

impl Limits {
    /// Of this backend and products with such activations; takes memory to read, several times what caches hold.
    pub fn new(backend: Backend, peak: Activations) -> Self {
        // Not zero, or every page might be the same one.
        Self { backend, peak, memory: vec![1; 256 << 20] }
    }

    /// The peak of products, tried until threads that were asleep are spread over the processors, and a plain read of memory:
    /// operations and bytes a second.
    pub fn measure(&self) -> (f64, f64) {
        let peak = (0..10).map(|_| limits::fma_peak(self.backend, self.peak)).fold(0.0, f64::max);
        (peak, limits::read_bandwidth(self.backend, &self.memory))
    }
}

/// Directory and options of the command line.
pub fn arguments() -> Result<(PathBuf, Vec<String>)> {
    let mut args = env::args().skip(1);
    let directory = args.next().ok_or("which directory?")?.into();
    Ok((directory, args.collect()))
}

/// Answers lines until there are no more.
pub fn serve(directory: &Path, description: &str, contestant: &mut dyn Contestant) -> Result<()> {
    let inputs = fs::read(directory.join("inputs.safetensors"))?;
    let inputs = SafeTensors::deserialize(&inputs)?;
    serve_lines(description, |words| answer(&inputs, contestant, words))
}

/// Says that it is ready, and answers the words of one line after the other until there are no more.
pub fn serve_lines(description: &str, mut answer: impl FnMut(&[&str]) -> Result<String>) -> Result<()> {
    println!("ready {description}");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        println!("{}", answer(&words).unwrap_or_else(|error| format!("error: {error}")));
        io::stdout().flush()?;
    }
    Ok(())
}

fn answer(inputs: &SafeTensors<'_>, contestant: &mut dyn Contestant, words: &[&str]) -> Result<String> {
    match *words {
        ["run", tokens, variant, calls] => {
            let (variant, calls): (usize, usize) = (variant.parse()?, calls.parse()?);
            let mut seconds = 0.0;
            for call in 0..calls {
                contestant.prepare(&case(inputs, tokens, variant + call)?)?;
                let begun = Instant::now();
                contestant.run()?;
                seconds += begun.elapsed().as_secs_f64();
            }
            Ok((seconds / calls as f64).to_string())
        }
        ["output", tokens, variant, path] => {
            contestant.prepare(&case(inputs, tokens, variant.parse()?)?)?;
            contestant.run()?;
            let bytes: Vec<u8> = contestant.output()?.into_iter().flat_map(f32::to_le_bytes).collect();
            fs::write(path, bytes)?;
            Ok("ok".to_owned())
        }
        ["limits"] => {
            let (flops, bytes) = contestant.limits()?;
            Ok(format!("{flops} {bytes}"))
        }
        _ => Err(format!("what is {words:?}?").into()),
    }
}

/// The case of so many tokens; there may be fewer variants than are asked for, which then come round again.
fn case(inputs: &SafeTensors<'_>, tokens: &str, variant: usize) -> Result<Case> {
    let x = inputs.tensor(&format!("{tokens}.x"))?;
    let experts = inputs.tensor(&format!("{tokens}.experts"))?;
    let weights = inputs.tensor(&format!("{tokens}.weights"))?;
    let &[variants, tokens, chosen] = experts.shape() else { return Err("experts are [V, T, k]".into()) };
    let part = |all: &[u8]| {
        let bytes = all.len() / variants;
        let begin = variant % variants * bytes;
        begin..begin + bytes
    };
    Ok(Case {
        tokens,
        chosen,
        x: words(x.data(), f32::from_le_bytes),
        experts: words(&experts.data()[part(experts.data())], u32::from_le_bytes),
        weights: words(&weights.data()[part(weights.data())], f32::from_le_bytes),
    })
}

fn words<T>(bytes: &[u8], of: impl Fn([u8; 4]) -> T) -> Vec<T> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| of(*word)).collect()
}
