//! What a model takes of a budget, from its config and headers alone.

use moe_core::expert_cache::CachePolicy;
use moe_kernels::{Dtype, padded_row_bytes};

use super::place::ExpertPlace;
use super::store::STREAMED;
use super::{DEFAULT_POLICY, DiskReads, ExpertPrior, ReadAhead};
use crate::checkpoint::UncachedFile;
use crate::inspect::own_memory;
use crate::manifest::{Kind, Manifest};
use crate::{Checkpoint, Config, DEFAULT_CHUNK, Error, Result};

/// Bytes that the program itself may grow by while it runs: stacks of threads, a vocabulary, a page of text.
const PROGRAM: u64 = 48 << 20;

/// Bytes of lists and of what is rounded up in the buffers of a pass.
const SLACK: u64 = 8 << 20;

/// How a model is to be used, as far as memory depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Most positions of a session; `None` for those of the model.
    pub context: Option<usize>,
    /// Sessions at a time.
    pub sessions: usize,
    /// Type of their cached keys and values.
    pub kv_dtype: Dtype,
    /// Most tokens of a pass.
    pub tokens: usize,
    /// Most tokens of a pass whose logits are wanted.
    pub logits: usize,
    /// Most experts that a token has in a layer; `None` for as many as the model's own routers choose.
    pub choices: Option<usize>,
    /// Bytes that the caller keeps besides: results, texts.
    pub besides: u64,
}

impl Default for MemoryUse {
    /// One session that reads a prompt in chunks of 512 tokens.
    fn default() -> Self {
        let (kv_dtype, choices) = (Dtype::F32, None);
        Self { context: None, sessions: 1, kv_dtype, tokens: DEFAULT_CHUNK, logits: 1, choices, besides: 0 }
    }
}

/// What takes how much of a budget of memory, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// All that the process may cause.
    pub budget: u64,
    /// The program itself, as it is when the plan is made and with what it may grow by.
    pub program: u64,
    /// Weights other than experts', which stay in memory.
    pub weights: u64,
    /// Keys and values of all sessions.
    pub kv_cache: u64,
    /// Buffers of a pass.
    pub workspace: u64,
    /// What the caller keeps besides.
    pub besides: u64,
    /// Two experts that pass through where the cache has no room.
    pub streamed: u64,
    /// What is left for experts that stay.
    pub experts: u64,
    /// All experts.
    pub all_experts: u64,
    /// The largest of them.
    pub largest_expert: u64,
    /// Those that a token wants, in all layers.
    pub experts_of_token: u64,
    /// The least budget that works.
    pub least: u64,
    /// What is evicted first.
    #[serde(skip)]
    pub policy: CachePolicy,
    /// Whether experts are read before a router has spoken.
    #[serde(skip)]
    pub read_ahead: ReadAhead,
    /// How files are read.
    #[serde(skip)]
    pub disk_reads: DiskReads,
    /// How often experts were wanted before, which says which of them are in memory from the start.
    #[serde(skip)]
    pub prior: Option<ExpertPrior>,
}

impl MemoryPlan {
    /// Plans for a model of a checkpoint, which is only looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Budget`] if the budget is too small for the least; [`Error::Tensor`] for a checkpoint that is not of the config;
    /// [`Error::Setting`] for one whose [access](crate::Access) is `Read`.
    pub fn new(config: &Config, checkpoint: &Checkpoint, uses: &MemoryUse, budget: u64) -> Result<Self> {
        let plan = Self::unchecked(config, checkpoint, uses, budget)?;
        match plan.budget < plan.least {
            true => Err(Error::Budget { plan: Box::new(plan) }),
            false => Ok(plan),
        }
    }

    /// The same of a budget that may be too small.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new) but for the first.
    pub fn unchecked(
        config: &Config,
        checkpoint: &Checkpoint,
        uses: &MemoryUse,
        budget: u64,
    ) -> Result<Self> {
        // A config that was read is valid, but its fields are public.
        config.validate(checkpoint.root())?;
        let manifest = Manifest::new(config);
        let mut weights = 0u64;
        for spec in manifest.tensors().filter(|spec| spec.kind() != Kind::Experts) {
            let place = checkpoint.place(&spec, config)?;
            // Read into pages of its own; norms are widened besides.
            let bytes = usize::try_from(place.bytes).unwrap_or(usize::MAX);
            let widened = if spec.kind() == Kind::Norms { 4 * spec.elements() } else { 0 };
            weights = weights
                .saturating_add(UncachedFile::room(place.offset, bytes) as u64)
                .saturating_add(widened);
        }
        let (mut all_experts, mut largest_expert, mut experts_of_token) = (0, 0, 0);
        for n in 0..config.layers {
            let (layer, count) = (manifest.layer(n), config.experts.of(n));
            let mut largest = 0;
            for e in 0..count {
                let room = ExpertPlace::of(checkpoint, config, &layer, e)?.room();
                all_experts += room;
                largest = largest.max(room);
            }
            largest_expert = largest_expert.max(largest);
            experts_of_token += largest * config.experts_per_token.min(count) as u64;
        }
        let program = own_memory() + PROGRAM;
        let (kv_cache, workspace) = (kv_cache(config, uses), workspace(config, uses));
        let fixed =
            [program, weights, kv_cache, workspace, uses.besides].into_iter().fold(0, u64::saturating_add);
        let streamed = (STREAMED as u64 * largest_expert).min(all_experts);
        let left = budget.saturating_sub(fixed);
        // Where all fit, none passes through.
        let (streamed, experts) = match left >= all_experts {
            true => (0, all_experts),
            false => (streamed, left.saturating_sub(streamed)),
        };
        let least = fixed.saturating_add((STREAMED as u64 * largest_expert).min(all_experts));
        Ok(Self {
            budget,
            program,
            weights,
            kv_cache,
            workspace,
            besides: uses.besides,
            streamed,
            experts,
            all_experts,
            largest_expert,
            experts_of_token,
            least,
            policy: DEFAULT_POLICY,
            read_ahead: ReadAhead::default(),
            disk_reads: DiskReads::default(),
            prior: None,
        })
    }

    /// The same with another order of eviction.
    pub fn with_policy(self, policy: CachePolicy) -> Self {
        Self { policy, ..self }
    }

    /// The same, reading ahead of routers or not.
    pub fn with_read_ahead(self, read_ahead: ReadAhead) -> Self {
        Self { read_ahead, ..self }
    }

    /// The same, reading files in another way.
    pub fn with_disk_reads(self, disk_reads: DiskReads) -> Self {
        Self { disk_reads, ..self }
    }

    /// The same, with the experts in memory from the start that were wanted most before. They are read when the model is loaded.
    pub fn with_prior(self, prior: ExpertPrior) -> Self {
        Self { prior: Some(prior), ..self }
    }

    /// What the budget must hold whatever becomes of experts.
    pub(crate) fn fixed(&self) -> u64 {
        let parts = [self.program, self.weights, self.kv_cache, self.workspace, self.besides];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes that are spoken for, the cache of experts included.
    pub fn planned(&self) -> u64 {
        self.fixed().saturating_add(self.streamed).saturating_add(self.experts)
    }
}

/// Keys and values of all sessions at their full length, and one layer's twice, since it moves when it grows.
fn kv_cache(config: &Config, uses: &MemoryUse) -> u64 {
    let positions = positions(config, uses);
    let row = padded_row_bytes(uses.kv_dtype, config.head_dim) as u64;
    let layer = product(&[2, positions, config.kv_heads as u64, row]);
    layer.saturating_mul(product(&[config.layers as u64, uses.sessions as u64]).saturating_add(1))
}

/// Rows of a head that a session's cache has at most.
fn positions(config: &Config, uses: &MemoryUse) -> u64 {
    let context = uses.context.unwrap_or(config.max_positions).min(config.max_positions);
    let needed =
        config.sliding_window.map_or(context, |window| window.saturating_add(uses.tokens).min(context));
    let doubled = needed.checked_next_power_of_two().unwrap_or(usize::MAX);
    doubled.max(64).min(context.max(needed)) as u64
}

/// Buffers of a pass: more than it takes, by as much as sizes are rounded up.
fn workspace(config: &Config, uses: &MemoryUse) -> u64 {
    let Config { hidden_size, intermediate_size, vocab_size, heads, kv_heads, head_dim, .. } = *config;
    let queries = heads.saturating_mul(head_dim);
    let rounded = |n: usize, to: usize| n.checked_next_multiple_of(to).unwrap_or(usize::MAX) as u64;
    let [dim, hidden, vocabulary, queries, keys] =
        [hidden_size, intermediate_size, vocab_size, queries, kv_heads.saturating_mul(head_dim)]
            .map(|n| rounded(n, 64));
    // Rows are packed by tiles.
    let (tokens, wanted) = (rounded(uses.tokens, 16), rounded(uses.logits.min(uses.tokens), 16));
    let choices = uses.choices.unwrap_or(config.experts_per_token).min(config.experts.most()) as u64;
    let rows = product(&[tokens, choices]).saturating_add(16 * config.experts.most() as u64);
    // Residual stream, norm and what is added; queries, keys, values, what attention gives, and x packed.
    let stream = [3 * dim, 2 * queries, 2 * keys, dim, queries.max(dim)];
    let stream = product(&[tokens, stream.into_iter().fold(0, u64::saturating_add)]);
    // Rows and hidden rows packed, and both as they come out of a product.
    let experts = product(&[rows, (3 * dim).saturating_add(2 * hidden)]);
    let logits = product(&[wanted, (2 * vocabulary).saturating_add(dim)]);
    let floats = stream.saturating_add(experts).saturating_add(logits);
    // Each thread has scores of a few queries over all positions.
    let scores = product(&[rayon::current_num_threads() as u64, 4 * 64, positions(config, uses)]);
    floats.saturating_mul(4).saturating_add(floats / 2).saturating_add(scores).saturating_add(SLACK)
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().copied().fold(1, u64::saturating_mul)
}
