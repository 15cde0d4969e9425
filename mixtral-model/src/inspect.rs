//! What a model directory holds, from its config and headers alone.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::manifest::{Kind, Manifest};
use crate::{Access, Checkpoint, Config, Layout, Result};

/// Facts about a model directory. [`Display`](fmt::Display) writes them for people, `serde` for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The directory.
    pub path: PathBuf,
    /// How tensors are named and split.
    pub layout: Layout,
    /// Number of weight files.
    pub files: usize,
    /// Their length in bytes, headers included.
    pub file_bytes: u64,
    /// Number of tensors, unused ones included.
    pub tensors: usize,
    /// Names of tensors that the model has no use for.
    pub unused: Vec<String>,
    /// Parameters of the model.
    pub parameters: u64,
    /// Parameters that act on one token; see [`Manifest::active_parameters`].
    pub active_parameters: u64,
    /// Sizes by part of the model, in the order of a forward pass; parts without tensors are left out.
    pub kinds: Vec<KindReport>,
    /// Bytes of the model's tensors by element type, by name.
    pub dtypes: BTreeMap<String, u64>,
    /// The sizes of the config.
    pub geometry: Geometry,
    /// The latest tokens that a token attends to; `None` is full causal attention.
    pub sliding_window: Option<usize>,
    /// Bytes that a token takes in a key/value cache of two-byte elements, over all layers; twice that in f32.
    pub kv_bytes_per_token: u64,
    /// What running takes of this machine's memory.
    pub memory: Memory,
}

/// The tensors of one [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KindReport {
    /// The part of the model.
    pub kind: Kind,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// The same by element type, by name.
    pub dtypes: BTreeMap<String, u64>,
}

impl KindReport {
    fn none(kind: Kind) -> Self {
        Self { kind, tensors: 0, parameters: 0, bytes: 0, dtypes: BTreeMap::new() }
    }
}

/// The sizes of a [`Config`], under the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is documented where `Config` has it")]
pub struct Geometry {
    pub layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_positions: usize,
}

/// What a model takes of a machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes of weights. Mapped, they are pages of files that the system can drop and read again; read, they are
    /// anonymous memory that it cannot.
    pub weights: u64,
    /// Bytes of a key/value cache of two-byte elements for the longest sequence, or for the window if that is
    /// shorter: anonymous memory in any case.
    pub kv_cache: u64,
    /// Bytes that could be allocated when the report was made: `MemAvailable` of `/proc/meminfo`. `None` where there
    /// is no such file.
    pub available: Option<u64>,
}

impl Memory {
    /// Whether weights and cache stay in memory together, so that nothing is read from disk twice.
    pub fn holds_everything(&self) -> Option<bool> {
        Some(self.weights.saturating_add(self.kv_cache) <= self.available?)
    }

    /// Whether the cache fits; with mapped weights nothing else must.
    pub fn holds_cache(&self) -> Option<bool> {
        Some(self.kv_cache <= self.available?)
    }
}

impl Report {
    /// Reports on a model directory. Reads its config and the headers of its weight files.
    ///
    /// # Errors
    ///
    /// Those of [`Config::from_dir`], [`Checkpoint::open`] and [`Checkpoint::verify`].
    pub fn of_dir(dir: &Path) -> Result<Self> {
        Self::new(&Config::from_dir(dir)?, &Checkpoint::open(dir, Access::Map)?)
    }

    /// Reports on an open checkpoint.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::verify`].
    pub fn new(config: &Config, checkpoint: &Checkpoint) -> Result<Self> {
        let unused = checkpoint.verify(config)?.into_iter().map(str::to_owned).collect();
        let manifest = Manifest::new(config);
        let mut kinds: Vec<_> = Kind::ALL.map(KindReport::none).into();
        let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
        for spec in manifest.tensors() {
            let place = checkpoint.place(&spec, config)?;
            let format = place.format.to_string();
            if let Some(of_kind) = kinds.iter_mut().find(|of_kind| of_kind.kind == spec.kind()) {
                of_kind.tensors += 1;
                of_kind.parameters += spec.elements();
                of_kind.bytes += place.bytes;
                *of_kind.dtypes.entry(format.clone()).or_default() += place.bytes;
            }
            *dtypes.entry(format).or_default() += place.bytes;
        }
        kinds.retain(|of_kind| of_kind.tensors > 0);

        let sizes = [2, 2, config.layers, config.kv_heads, config.head_dim];
        let kv_bytes_per_token = crate::manifest::elements(&sizes);
        let positions = config.sliding_window.unwrap_or(usize::MAX).min(config.max_positions);
        Ok(Self {
            path: checkpoint.root().to_path_buf(),
            layout: checkpoint.layout().clone(),
            files: checkpoint.files().len(),
            file_bytes: checkpoint.files().map(|(_, len)| len).sum(),
            tensors: checkpoint.entries().len(),
            unused,
            parameters: manifest.parameters(),
            active_parameters: manifest.active_parameters(),
            geometry: Geometry::of(config),
            sliding_window: config.sliding_window,
            kv_bytes_per_token,
            memory: Memory {
                weights: kinds.iter().map(|of_kind| of_kind.bytes).sum(),
                kv_cache: kv_bytes_per_token.saturating_mul(positions as u64),
                available: available_memory(),
            },
            kinds,
            dtypes,
        })
    }
}

impl Geometry {
    fn of(config: &Config) -> Self {
        Self {
            layers: config.layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            experts: config.experts,
            experts_per_token: config.experts_per_token,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_positions: config.max_positions,
        }
    }
}

/// Bytes that could be allocated now: `MemAvailable` of `/proc/meminfo`. `None` where there is no such file.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.geometry;
        writeln!(f, "{}", self.path.display())?;
        writeln!(
            f,
            "weights     {} in {} tensors, {} file{}, {}",
            Bytes(self.file_bytes),
            self.tensors,
            self.files,
            plural(self.files),
            names(&self.dtypes),
        )?;
        writeln!(f, "layout      {}", self.layout)?;
        writeln!(
            f,
            "parameters  {} ({}), of which {} act on a token",
            grouped(self.parameters),
            Count(self.parameters),
            Count(self.active_parameters)
        )?;
        for of_kind in &self.kinds {
            let KindReport { kind, tensors, parameters, bytes, dtypes } = of_kind;
            let (parameters, bytes) = (Count(*parameters), Bytes(*bytes));
            writeln!(
                f,
                "  {:<10}{parameters:>10} {bytes:>10} in {tensors} tensor{}, {}",
                kind.name(),
                plural(*tensors),
                names(dtypes)
            )?;
        }
        writeln!(
            f,
            "shape       {} layers, width {}, {} experts of {}, {} chosen, vocabulary {}",
            g.layers, g.hidden_size, g.experts, g.intermediate_size, g.experts_per_token, g.vocab_size
        )?;
        write!(f, "attention   {} heads of {}, {} for keys and values, ", g.heads, g.head_dim, g.kv_heads)?;
        match self.sliding_window {
            None => writeln!(f, "full causal")?,
            Some(window) => writeln!(f, "window of {window}")?,
        }
        writeln!(
            f,
            "cache       {} a token in f16, {} for {} positions",
            Bytes(self.kv_bytes_per_token),
            Bytes(self.memory.kv_cache),
            self.sliding_window.unwrap_or(usize::MAX).min(g.max_positions)
        )?;
        write!(f, "memory      ")?;
        match (self.memory.available, self.memory.holds_everything(), self.memory.holds_cache()) {
            (Some(free), Some(true), _) => writeln!(f, "{} available: weights and cache fit", Bytes(free))?,
            (Some(free), _, Some(true)) => {
                writeln!(
                    f,
                    "{} available: the cache fits, weights are read from disk again and again",
                    Bytes(free)
                )?;
            }
            (Some(free), ..) => writeln!(f, "{} available: not enough for the cache", Bytes(free))?,
            (None, ..) => writeln!(f, "unknown")?,
        }
        if let Some(first) = self.unused.first() {
            let rest = self.unused.len() - 1;
            write!(f, "unused      {}", first.escape_debug())?;
            if rest > 0 {
                write!(f, " and {rest} more tensor{}", plural(rest))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// `f32 and q4_k`.
fn names(dtypes: &BTreeMap<String, u64>) -> String {
    dtypes.keys().map(String::as_str).collect::<Vec<_>>().join(" and ")
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// All digits, in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes, in the decimal units of disks and model cards.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, [" B", " kB", " MB", " GB", " TB"]))
    }
}

/// A number of parameters.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, ["", " K", " M", " B", " T"]))
    }
}

/// Three or four significant digits and a unit.
fn scaled(n: u64, units: [&str; 5]) -> String {
    if n < 1000 {
        return format!("{n}{}", units[0]);
    }
    let (mut value, mut unit) = (n as f64 / 1000.0, 1);
    while value >= 999.5 && unit < 4 {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", units[unit])
}
