//! What a model is made of, from its config and headers alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moe_kernels::Dtype;
use serde::Serialize;

mod display;

pub(crate) use display::Bytes;

use crate::input::require;
use crate::manifest::{Kind, Manifest, elements};
use crate::{Access, ChatFormat, Checkpoint, Config, LayerExperts, Layout, Result, RopeScaling, Source};

/// Facts about a model. [`Display`](std::fmt::Display) writes them for people, `serde` for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The directory or file of the weights.
    pub path: PathBuf,
    /// What is said beside config and weights, if a source was looked at.
    #[serde(flatten)]
    pub about: Option<About>,
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
    /// How the rotary embedding is scaled, in words; `None` is not at all.
    pub rope_scaling: Option<String>,
    /// The latest tokens that a token attends to; `None` is full causal attention.
    pub sliding_window: Option<usize>,
    /// Type of cached keys and values, by name; f32 unless [`with_cache`](Self::with_cache) says otherwise.
    pub kv_type: String,
    /// Bytes that a token takes in a key/value cache of that type, over all layers.
    pub kv_bytes_per_token: u64,
    /// Positions of the longest sequence that the cache holds: those of the model, or of the window if that is shorter.
    pub kv_positions: usize,
    /// What running takes of this machine's memory.
    pub memory: Memory,
}

/// What a source says beside config and weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct About {
    /// What kind of source it is, and where.
    pub source: String,
    /// Its tokenizer.
    pub tokenizer: Found<TokenizerReport>,
    /// The format of its chats.
    pub chat: Found<ChatReport>,
    /// Files and keys that have no effect though they might be expected to.
    pub warnings: Vec<String>,
}

/// What was found, or why it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Found<T> {
    /// It can.
    Is(T),
    /// It cannot.
    Not {
        /// Why.
        error: String,
    },
}

/// A tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TokenizerReport {
    /// Number of its pieces.
    pub pieces: usize,
    /// What its files contradict each other in.
    pub warnings: Vec<String>,
}

/// A chat format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChatReport {
    /// `v1`, `v2`, `v3` or `v7` of Mistral's, or `template`.
    pub format: String,
    /// What the choice rests on.
    pub evidence: String,
    /// Whether nothing spoke for it.
    pub assumed: bool,
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
    pub experts: LayerExperts,
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
    /// Bytes of a key/value cache for the longest sequence, or for the window if that is shorter: anonymous memory in any
    /// case.
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
    /// Reports on a source. Reads its config, the headers of its weight files, and its tokenizer; that there is none of the
    /// latter, or none that is understood, is part of the report.
    ///
    /// # Errors
    ///
    /// Those of [`Source::config`], [`Source::checkpoint`] and [`Checkpoint::verify`].
    pub fn of(source: &Source) -> Result<Self> {
        let report = Self::new(&source.config()?, &source.checkpoint(Access::Map)?)?;
        Ok(Self { about: Some(About::of(source)?), ..report })
    }

    /// Reports on an open checkpoint.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::verify`].
    pub fn new(config: &Config, checkpoint: &Checkpoint) -> Result<Self> {
        let names = checkpoint.entries().map(|entry| 2 * entry.name.len() + 256);
        require(names.fold(0, usize::saturating_add), "a list of tensors")?;
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

        let mut report = Self {
            path: checkpoint.root().to_path_buf(),
            about: None,
            layout: checkpoint.layout().clone(),
            files: checkpoint.files().len(),
            file_bytes: checkpoint.files().map(|(_, len)| len).sum(),
            tensors: checkpoint.entries().len(),
            unused,
            parameters: manifest.parameters(),
            active_parameters: manifest.active_parameters(),
            geometry: Geometry::of(config),
            rope_scaling: Some(config.rope_scaling)
                .filter(|s| *s != RopeScaling::None)
                .map(|s| s.to_string()),
            sliding_window: config.sliding_window,
            kv_type: String::new(),
            kv_bytes_per_token: 0,
            kv_positions: 0,
            memory: Memory {
                weights: kinds.iter().map(|of_kind| of_kind.bytes).sum(),
                kv_cache: 0,
                available: available_memory(),
            },
            kinds,
            dtypes,
        };
        report.set_cache(Dtype::F32, config.max_positions);
        Ok(report)
    }

    /// The same for a cache of another element type, and for sequences of at most so many positions.
    pub fn with_cache(mut self, kv_type: Dtype, positions: Option<usize>) -> Self {
        let most = self.geometry.max_positions;
        self.set_cache(kv_type, positions.map_or(most, |positions| positions.min(most)));
        self
    }

    fn set_cache(&mut self, kv_type: Dtype, positions: usize) {
        let Geometry { layers, kv_heads, head_dim, .. } = self.geometry;
        self.kv_type = kv_type.to_string();
        self.kv_bytes_per_token = elements(&[2, kv_type.bytes(), layers, kv_heads, head_dim]);
        self.kv_positions = self.sliding_window.unwrap_or(usize::MAX).min(positions);
        self.memory.kv_cache = self.kv_bytes_per_token.saturating_mul(self.kv_positions as u64);
    }
}

impl About {
    /// Looks at what a source says.
    ///
    /// # Errors
    ///
    /// Those of [`Source::config`].
    pub fn of(source: &Source) -> Result<Self> {
        let tokenizer = source.tokenizer();
        let chat = match &tokenizer {
            Ok(tokenizer) => source
                .chat_evidence()
                .and_then(|evidence| ChatFormat::choose(&evidence, tokenizer))
                .map(|format| ChatReport {
                    format: format
                        .version()
                        .map_or_else(|| "template".to_owned(), |version| version.to_string()),
                    evidence: format.evidence().to_owned(),
                    assumed: format.is_assumed(),
                }),
            Err(_) => Err(crate::Error::Setting {
                setting: "chat format",
                expected: "a tokenizer".to_owned(),
                found: "none that is understood".to_owned(),
            }),
        };
        let tokenizer = tokenizer.map(|tokenizer| TokenizerReport {
            pieces: tokenizer.vocab_size(),
            warnings: tokenizer.warnings().to_vec(),
        });
        Ok(Self {
            source: source.to_string(),
            tokenizer: tokenizer.into(),
            chat: chat.into(),
            warnings: source.warnings()?,
        })
    }
}

impl<T> From<Result<T>> for Found<T> {
    fn from(found: Result<T>) -> Self {
        match found {
            Ok(is) => Self::Is(is),
            Err(error) => Self::Not { error: error.to_string() },
        }
    }
}

impl Geometry {
    fn of(config: &Config) -> Self {
        Self {
            layers: config.layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            experts: config.experts.clone(),
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

/// Bytes of memory that this process takes: `VmRSS` of `/proc/self/status`, or what it takes elsewhere where there is no such file.
pub(crate) fn own_memory() -> u64 {
    const ELSEWHERE: u64 = 32 << 20;
    status("VmRSS:").unwrap_or(ELSEWHERE)
}

/// The most memory that this process has taken so far: `VmHWM` of `/proc/self/status`; `None` where there is no such file.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

fn status(line: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = text.lines().find_map(|found| found.strip_prefix(line))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
