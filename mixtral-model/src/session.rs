//! One sequence in the making.

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
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { kv_dtype: Dtype::F32, context: None, sequence_id: 0 }
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
}

/// A sequence: the tokens it holds, and their keys and values. [`Model::session`](crate::Model::session) makes one.
#[derive(Debug)]
pub struct Session {
    cache: KvCache,
    tokens: Vec<u32>,
    context: usize,
    sequence_id: u64,
}

impl Session {
    /// A session of a model with attention of these shapes, layer by layer, and so many positions at most.
    pub(crate) fn new(
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
        let (cache, sequence_id) = (KvCache::new(layers, options.kv_dtype), options.sequence_id);
        Ok(Self { cache, tokens: Vec::new(), context, sequence_id })
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
