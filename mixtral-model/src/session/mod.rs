//! One sequence in the making.

mod file;

use std::sync::atomic::{AtomicU64, Ordering};

use moe_core::memory;
use moe_kernels::Dtype;
use moe_kernels::attention::AttentionShape;

use crate::cache::KvCache;
use crate::rope::check_context;
use crate::{Error, Result};

/// How a session keeps its past.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Element type of cached keys and values. f32 is exact; the halves round each of them, within the current chunk too, so
    /// that chunking still changes nothing.
    pub kv_dtype: Dtype,
    /// The most positions the session may reach; `None` is the model's own limit.
    pub context: Option<usize>,
    /// What routers know the sequence by: part of what random draws are a function of, and where a router with
    /// [memory](moe_core::Router#memory) finds what it remembers. 0 unless said otherwise, so that sessions draw alike.
    pub sequence_id: u64,
    /// Seed of what routers draw for the sequence; 0 unless said otherwise. Sampling has a [seed](crate::Sampling) of its own.
    pub seed: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { kv_dtype: Dtype::F32, context: None, sequence_id: 0, seed: 0 }
    }
}

impl SessionOptions {
    /// The same, with another element type of the cache.
    pub fn with_kv_dtype(self, kv_dtype: Dtype) -> Self {
        Self { kv_dtype, ..self }
    }

    /// The same, with a limit of its own.
    pub fn with_context(self, context: usize) -> Self {
        Self { context: Some(context), ..self }
    }

    /// The same, with an identity of its own for routers.
    pub fn with_sequence_id(self, sequence_id: u64) -> Self {
        Self { sequence_id, ..self }
    }

    /// The same, with a seed for what routers draw.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// What model a session is of. Every model that is loaded has an identity of its own, which it keeps under other routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModelId(u64);

impl ModelId {
    /// One that no other has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A sequence: the tokens it holds, and their keys and values. [`Model::session`](crate::Model::session) makes one.
///
/// It is a session of the model that made it, and of no other, whatever its shape. It can be taken back ([`truncate`](Self::truncate)),
/// branched ([`fork`](Self::fork)), and kept in a file ([`save`](Self::save), [`Model::restore`](crate::Model::restore)); what is
/// computed from there has the same bits as if nothing had happened. It is no `Clone`, since memory for a copy may not be there.
#[derive(Debug)]
pub struct Session {
    model: ModelId,
    cache: KvCache,
    tokens: Vec<u32>,
    context: usize,
    sequence_id: u64,
    seed: u64,
}

impl Session {
    /// A session of a model with attention of these shapes, layer by layer, and so many positions at most.
    pub(crate) fn new(
        model: ModelId,
        layers: impl Iterator<Item = AttentionShape>,
        max_positions: usize,
        options: SessionOptions,
    ) -> Result<Self> {
        let context = options.context.unwrap_or(max_positions);
        if context == 0 || context > max_positions {
            return Err(Error::Setting {
                setting: "context",
                expected: format!("1 to {max_positions} positions"),
                found: context.to_string(),
            });
        }
        let SessionOptions { kv_dtype, sequence_id, seed, .. } = options;
        let cache = KvCache::new(layers, kv_dtype);
        Ok(Self { model, cache, tokens: Vec::new(), context, sequence_id, seed })
    }

    /// The tokens processed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of the next token.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The most positions it may reach.
    pub fn context(&self) -> usize {
        self.context
    }

    /// What routers know the sequence by.
    pub fn sequence_id(&self) -> u64 {
        self.sequence_id
    }

    /// Gives the sequence another identity for routers: for what is read from now on.
    pub fn set_sequence_id(&mut self, sequence_id: u64) {
        self.sequence_id = sequence_id;
    }

    /// Seed of what routers draw for the sequence.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Element type of cached keys and values.
    pub fn kv_dtype(&self) -> Dtype {
        self.cache.dtype()
    }

    /// Bytes the cache takes now.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Forgets everything; memory is kept.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.cache.clear();
    }

    /// The least position, besides 0, that the session can be taken back to.
    ///
    /// It is 0, so that there is no limit, unless the model has a sliding window: then the cache is a ring, in which later positions
    /// have taken the places of early ones.
    pub fn earliest(&self) -> usize {
        self.cache.earliest()
    }

    /// Forgets the tokens from `position` on; memory is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a position beyond its own, or before the [earliest](Self::earliest). The session is then as before.
    pub fn truncate(&mut self, position: usize) -> Result<()> {
        self.check_position(position)?;
        match position {
            0 => self.clear(),
            _ => self.tokens.truncate(position),
        }
        Ok(())
    }

    /// A session of the first `position` tokens, with the same settings, for a branch of its own. Nothing is shared: the keys and values
    /// that may be seen from there are copied.
    ///
    /// # Errors
    ///
    /// As [`truncate`](Self::truncate); [`Error::OutOfMemory`].
    pub fn fork(&self, position: usize) -> Result<Self> {
        self.check_position(position)?;
        let mut tokens = Vec::new();
        memory::reserve(&mut tokens, position, "tokens of a session")?;
        tokens.extend_from_slice(&self.tokens[..position]);
        Ok(Self { cache: self.cache.copy(position)?, tokens, ..*self })
    }

    /// A copy of the whole session.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self> {
        self.fork(self.position())
    }

    fn check_position(&self, position: usize) -> Result<()> {
        let (earliest, latest) = (self.earliest(), self.position());
        if position == latest || position == 0 || (earliest..latest).contains(&position) {
            return Ok(());
        }
        let expected = match earliest {
            0 => format!("0 to {latest}"),
            _ => format!(
                "0, or {earliest} to {latest}: what is seen from there must still be in the window's cache"
            ),
        };
        Err(Error::Setting { setting: "position", expected, found: position.to_string() })
    }

    /// Makes room for `tokens` more, so that processing them allocates nothing here.
    ///
    /// # Errors
    ///
    /// [`Error::ContextOverflow`] beyond the limit; [`Error::OutOfMemory`].
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        check_context(self.position(), tokens, self.context)?;
        memory::reserve(&mut self.tokens, tokens, "tokens of a session")?;
        self.cache.reserve(self.tokens.len(), tokens, self.context)
    }

    pub(crate) fn model(&self) -> ModelId {
        self.model
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.cache
    }

    pub(crate) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Takes tokens whose keys and values are in the cache by now.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }
}
