//! Mixtral on the CPU: from the files that you have to text, exact and reproducible to the bit.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use mixtral_model::{Access, Compute, GenerateOptions, Model, SessionOptions, Source, Workspace, generate};
//!
//! # fn main() -> mixtral_model::Result<()> {
//! // A directory, a GGUF file, or the name of a repository in the hub's local cache.
//! let source = Source::find("mixtral-8x7b-v0.1.Q4_K_M.gguf".as_ref())?;
//! let (config, tokenizer) = (source.config()?, source.tokenizer()?);
//! let model = Model::load(config, &source.checkpoint(Access::Map)?, Compute::default())?;
//!
//! let prompt = tokenizer.encode_prompt("A mixture of experts is")?;
//! let mut session = model.session(SessionOptions::default())?;
//! let options = GenerateOptions::new(&model, 100);
//! let go_on = |_| Ok::<_, mixtral_model::Error>(ControlFlow::Continue(()));
//! let text = generate(&model, &mut session, &prompt, &options, &mut Workspace::new(), &mut (), go_on)?;
//! println!("{}", tokenizer.decode(&text.tokens));
//! # Ok(())
//! # }
//! ```
//!
//! - [`Source`] finds out what a name means and what its files say; [`Checkpoint`] has the weights, where they lie, in any
//!   [`Layout`]; [`Loader`] makes a [`Model`] of them, with gates, routers and experts of your own where you want.
//! - [`Model::forward`] is one pass over [`Step`]s of one or several [`Session`]s; an [`Observer`] sees what every layer does.
//! - [`generate`](fn@generate), [`perplexity`](fn@perplexity) and [`Dump`] are made of such passes.
//! - [`Tokenizer`], [`ChatFormat`] and [`GenerationFile`] are what a model's files say besides; [`convert`] writes them anew.

// Tests within the crate share the models of those without.
#[cfg(test)]
extern crate self as mixtral_model;

mod attention;
mod batch;
mod budget;
mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod dump;
mod error;
mod gates;
mod generate;
mod generation;
mod gguf;
mod guess;
mod input;
pub mod inspect;
pub mod lab;
mod layout;
mod load;
pub mod manifest;
mod model;
mod observer;
mod perplexity;
mod products;
mod reserved;
mod rope;
mod routers;
mod sampling;
mod save;
mod session;
mod source;
mod stops;
pub mod tokenizer;
mod workspace;

pub use batch::{DEFAULT_CHUNK, Step, Wanted};
pub use budget::{
    AtHitRate, CacheUse, DEFAULT_POLICY, DiskReads, ExpertPrior, Forecast, Foretold, MemoryPlan, MemoryUse,
    ReadAhead,
};
pub use chat::{Chat, ChatEvidence, ChatFormat, Conversation, Message, MistralVersion, Template, Unread};
pub use checkpoint::{Access, Checkpoint, Digest, Place, TensorEntry, TensorView};
pub use config::{Config, GenerationConfig, GenerationFile, LayerExperts, RopeScaling};
pub use dump::{Choices, Dump};
pub use error::{Error, Result};
pub use generate::{Ended, Event, GenerateOptions, Generated, generate};
pub use generation::Generation;
pub use inspect::{Report, available_memory};
pub use layout::{ExpertStorage, Layout, RowOrder, Spelling};
pub use load::{Loader, MoeParts};
pub use manifest::{ExpertMatrix, Kind, LayerManifest, LayerPart, Manifest, TensorKey, TensorSpec};
pub use model::{Compute, Model};
pub use observer::{Observed, Observer};
pub use perplexity::{Perplexity, PerplexityOptions, Scored, TextWindow, log_sum_exp, perplexity};
pub use products::Products;
pub use routers::LayerRouters;
pub use sampling::{Length, LengthDecay, Rules, Sampler, Sampling, Span, argmax};
pub use save::remove_unfinished;
pub use session::{Session, SessionOptions};
pub use source::{Embedded, Source};
pub use stops::Stops;
pub use tokenizer::{BytePieces, SentencePieces, StreamDecoder, Tokenizer};
pub use workspace::Workspace;
