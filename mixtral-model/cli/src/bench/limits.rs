//! What this machine can do at most, measured again in each round.

use moe_kernels::{Activations, Backend, limits};

use super::Spread;

/// Bytes that are read: more than caches hold.
const READ: usize = 256 << 20;

/// Measures limits, and remembers what it found.
pub(super) struct Limits {
    backend: Backend,
    activations: Activations,
    memory: Vec<u8>,
    peaks: Vec<f64>,
    reads: Vec<f64>,
}

impl Limits {
    pub(super) fn new(backend: Backend, activations: Activations) -> Self {
        // Not zeros: their pages might be one.
        Self { backend, activations, memory: vec![1; READ], peaks: vec![], reads: vec![] }
    }

    /// Measures once.
    pub(super) fn measure(&mut self) {
        self.peaks.push(limits::fma_peak(self.backend, self.activations));
        self.reads.push(limits::read_bandwidth(self.backend, &self.memory));
    }

    /// Medians of what was measured since the last call: operations a second, bytes a second.
    pub(super) fn take(&mut self) -> (f64, f64) {
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
