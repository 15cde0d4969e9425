//! What this machine can do at most, measured again in each round.

use moe_core::memory;
use moe_kernels::{Activations, Backend, limits};

use super::Spread;
use crate::failure::Result;

/// Bytes that are read: more than caches hold.
pub(super) const READ: usize = 256 << 20;

/// Measurements of which a median is taken: of fewer, one that was disturbed would count.
const LEAST: usize = 3;

/// Measures limits, and remembers what it found.
pub(super) struct Limits {
    backend: Backend,
    activations: Activations,
    memory: Vec<u8>,
    peaks: Vec<f64>,
    reads: Vec<f64>,
}

impl Limits {
    pub(super) fn new(backend: Backend, activations: Activations) -> Result<Self> {
        let mut bytes = Vec::new();
        // Not zeros: their pages might be one.
        memory::refill(&mut bytes, READ, 1, "bytes that are read")?;
        Ok(Self { backend, activations, memory: bytes, peaks: vec![], reads: vec![] })
    }

    /// Measures once.
    pub(super) fn measure(&mut self) {
        self.peaks.push(limits::fma_peak(self.backend, self.activations));
        self.reads.push(limits::read_bandwidth(self.backend, &self.memory));
    }

    /// Medians of what was measured since the last call, and again if that was not often: operations a second, bytes a second.
    pub(super) fn take(&mut self) -> (f64, f64) {
        while self.peaks.len() < LEAST {
            self.measure();
        }
        let medians = (Spread::of(&self.peaks).median, Spread::of(&self.reads).median);
        self.peaks.clear();
        self.reads.clear();
        medians
    }
}

/// What was found of this machine, two lines: how exact products are cut, and the limits of all cases, each operations and
/// bytes a second, in billions.
pub(super) fn describe(backend: Backend, limits: impl Iterator<Item = [f64; 2]> + Clone) -> String {
    let extent = |i: usize| {
        let all = limits.clone().map(|limits| limits[i]);
        all.fold([f64::INFINITY, 0.0], |[least, most], v| [v.min(least), v.max(most)])
    };
    let ([low, high], [slow, fast]) = (extent(0), extent(1));
    format!(
        "tiles of exact products: {}\nlimits: peak {low:.0} to {high:.0} GFLOP/s, read {slow:.1} to {fast:.1} GB/s\n",
        backend.tiles()
    )
}

/// Seconds that this process's threads have worked so far, where the system tells.
pub(super) fn busy_seconds() -> Option<f64> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<f64>().ok()
    };
    threads.map(nanoseconds).sum::<Option<f64>>().map(|sum| sum / 1e9)
}
