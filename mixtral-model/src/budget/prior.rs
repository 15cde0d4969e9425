//! What is known beforehand of how often experts are wanted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use moe_core::expert_cache::CachePolicy;
use moe_router::trace::{TraceReader, TraceStats};

use crate::convert::Importance;
use crate::{Config, Error, Result};

/// How often each expert of each layer was wanted on some text, so that those that were wanted most are in memory from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertPrior {
    /// By layer and expert.
    uses: Vec<Vec<u64>>,
}

/// What a GGUF file begins with.
const GGUF: &[u8] = b"GGUF";

impl ExpertPrior {
    /// Of these uses, by layer and expert.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the model has other layers or experts.
    pub fn new(uses: Vec<Vec<u64>>, config: &Config) -> Result<Self> {
        let expected: Vec<_> = (0..config.layers).map(|n| config.experts.of(n)).collect();
        let found: Vec<_> = uses.iter().map(Vec::len).collect();
        if expected == found {
            return Ok(Self { uses });
        }
        let name = |counts: Vec<usize>| {
            let first = counts.first().map_or(0, |count| *count);
            format!("uses of {} layers, of {first} experts in the first", counts.len())
        };
        Err(Error::Setting { setting: "prior of experts", expected: name(expected), found: name(found) })
    }

    /// Reads a [route trace](moe_router::trace), or an importance matrix in a GGUF file, as llama.cpp writes it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Trace`]; those of [`Importance::read`]; those of [`new`](Self::new).
    pub fn read(path: &Path, config: &Config) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut begin = Vec::new();
        file.by_ref().take(GGUF.len() as u64).read_to_end(&mut begin).map_err(failed)?;
        if begin == GGUF {
            let importance = Importance::read(path)?;
            let of_layer = |n| importance.tokens_of_experts(n, config).unwrap_or_default();
            return Self::new((0..config.layers).map(of_layer).collect(), config);
        }
        let broken = |source| Error::Trace { path: path.to_path_buf(), source };
        let mut reader = TraceReader::new(BufReader::new((&*begin).chain(file))).map_err(broken)?;
        let stats = TraceStats::read(&mut reader).map_err(broken)?;
        let uses = stats.layers.iter().map(|layer| layer.load.counts().to_vec());
        Self::new(uses.collect(), config)
    }

    /// What each expert is worth, `[layers, experts]` with `most` experts a layer: the uses that it had in as many tokens as a policy that
    /// forgets looks back, so that what happens soon weighs as much.
    pub(super) fn worth(&self, config: &Config, most: usize) -> Vec<f64> {
        let tokens = f64::from(CachePolicy::DEFAULT_AGE.get()) * config.experts_per_token as f64;
        let of_layer = |uses: &Vec<u64>| {
            let all = uses.iter().map(|&n| n as f64).sum::<f64>().max(1.0);
            let worth = |e| uses.get(e).map_or(0.0, |&n: &u64| tokens * n as f64 / all);
            (0..most).map(worth).collect::<Vec<_>>()
        };
        self.uses.iter().flat_map(of_layer).collect()
    }
}
