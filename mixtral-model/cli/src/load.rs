//! The model that the command line means, with its warnings, and the demo that is part of the program.

use std::num::NonZeroUsize;
use std::path::Path;

use mixtral_model::{
    Access, ChatFormat, Checkpoint, Compute, Config, DEFAULT_CHUNK, DEFAULT_POLICY, Embedded, ExpertPrior,
    LayerRouters, Loader, MemoryPlan, MemoryUse, Model, Session, SessionOptions, Source, Template, Tokenizer,
};

use moe_core::Locality;

use crate::args::{self, Bytes, FormatName, RouterArgs, Running};
use crate::failure::{Result, warn};
use crate::summary::aside;

/// A tiny Mixtral, trained for demonstration.
const DEMO: Embedded = Embedded {
    name: "built-in demo",
    config: include_bytes!("../demo/config.json"),
    generation_config: include_bytes!("../demo/generation_config.json"),
    weights: include_bytes!("../demo/model.safetensors"),
    tokenizer: include_bytes!("../demo/tokenizer.model"),
};

/// The model of that path or name, or the demo.
pub(crate) fn source(name: Option<&Path>) -> Result<Source> {
    Ok(match name {
        None => Source::embedded(DEMO),
        Some(name) => Source::find(name)?,
    })
}

impl args::Source {
    pub(crate) fn source(&self) -> Result<Source> {
        source(self.model.as_deref())
    }
}

/// What passes of a command take of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes {
    /// Sessions at a time.
    pub(crate) sessions: usize,
    /// Most tokens of a pass.
    pub(crate) tokens: usize,
    /// Those of them whose logits are wanted.
    pub(crate) logits: usize,
    /// Bytes of what the command keeps besides.
    pub(crate) besides: u64,
    /// Most positions of a session, where the command knows.
    pub(crate) context: Option<usize>,
    /// Whether routers may be others than the model's own, which may choose all experts.
    pub(crate) any_router: bool,
}

impl Passes {
    /// Of a text that is generated: its prompt is read in chunks of 512 tokens.
    pub(crate) const TEXT: Self =
        Self { sessions: 1, tokens: DEFAULT_CHUNK, logits: 1, besides: 0, context: None, any_router: false };

    /// Of windows of a text, of which every token is predicted, in passes of so many.
    pub(crate) fn windows(chunk: usize) -> Self {
        Self { tokens: chunk, logits: chunk, ..Self::TEXT }
    }
}

impl args::Budget {
    /// What takes how much of so many bytes.
    pub(crate) fn plan(
        &self,
        config: &Config,
        checkpoint: &Checkpoint,
        cache: &args::Cache,
        passes: Passes,
        bytes: u64,
    ) -> Result<MemoryPlan> {
        let uses = cache.uses(passes);
        let plan = MemoryPlan::new(config, checkpoint, &uses, bytes)?;
        self.wishes(plan, config)
    }

    /// The plan with what else was asked for.
    pub(crate) fn wishes(&self, plan: MemoryPlan, config: &Config) -> Result<MemoryPlan> {
        let plan = plan
            .with_policy(self.cache_policy.unwrap_or(DEFAULT_POLICY))
            .with_read_ahead(self.read_ahead.unwrap_or_default())
            .with_disk_reads(self.disk_reads.unwrap_or_default());
        Ok(match &self.cache_prior {
            Some(path) => plan.with_prior(ExpertPrior::read(path, config)?),
            None => plan,
        })
    }
}

impl args::Cache {
    /// What sessions and passes take.
    pub(crate) fn uses(&self, passes: Passes) -> MemoryUse {
        let mut uses = MemoryUse::default();
        let Passes { sessions, tokens, logits, any_router, besides, context } = passes;
        (uses.sessions, uses.tokens, uses.logits, uses.besides) = (sessions, tokens, logits, besides);
        uses.choices = any_router.then_some(usize::MAX);
        let asked = self.context.map(NonZeroUsize::get);
        uses.context = asked.into_iter().chain(context).min();
        uses.kv_dtype = self.kv_type.into();
        uses
    }
}

impl args::Access {
    pub(crate) fn access(&self) -> Access {
        match (self.read, self.prefault, self.lock) {
            (true, ..) => Access::Read,
            (_, _, true) => Access::Lock,
            (_, true, _) => Access::Prefault,
            _ => Access::Map,
        }
    }
}

impl Running {
    pub(crate) fn compute(&self) -> Compute {
        let (backend, activations) = (self.machine.backend.unwrap_or_default(), self.activations);
        Compute { backend, activations }
    }

    /// The checkpoint, of which only headers and some bytes are read.
    pub(crate) fn look_at(&self, source: &Source) -> Result<Checkpoint> {
        // Under a budget, what a map brings into the page cache counts.
        let access = if self.budget.memory.is_some() { Access::Uncached } else { Access::Map };
        Ok(source.checkpoint(access)?)
    }

    /// Loads the model for passes of a kind, with a warning of what in its files it has no use for.
    pub(crate) fn load(&self, source: &Source, passes: impl FnOnce(&Config) -> Passes) -> Result<Model> {
        let config = source.config()?;
        source.warnings()?.iter().for_each(|warning| warn(warning));
        let access = if self.budget.memory.is_some() { Access::Uncached } else { self.access.access() };
        let checkpoint = source.checkpoint(access)?;
        let unused = checkpoint.verify(&config)?;
        if let Some(first) = unused.first() {
            let first = first.escape_debug();
            match unused.len() {
                1 => warn(&format!("tensor {first} is not used")),
                n => warn(&format!("{n} tensors are not used, {first} the first of them")),
            }
        }
        let Some(Bytes(bytes)) = self.budget.memory else {
            return Ok(Model::load(config, &checkpoint, self.compute())?);
        };
        let plan = self.budget.plan(&config, &checkpoint, &self.cache, passes(&config), bytes)?;
        Ok(Loader::new(config, &checkpoint, self.compute()).within(&plan)?.load()?)
    }

    /// The most positions of a sequence.
    pub(crate) fn context(&self, model: &Model) -> usize {
        self.cache.context.map_or(model.config().max_positions, NonZeroUsize::get)
    }

    /// Loads the model, and gives it other gates and routers.
    pub(crate) fn load_with(
        &self,
        source: &Source,
        router: &RouterArgs,
        passes: impl FnOnce(&Config) -> Passes,
    ) -> Result<Model> {
        let locality = router.router.as_deref().map(LayerRouters::locality_of).transpose()?;
        let mut model = self.load(source, |config| {
            let mut passes = Passes { any_router: locality.is_some(), ..passes(config) };
            if locality.is_some_and(|locality| locality != Locality::Token) {
                // They read a prompt, or a window, in one pass.
                let all_wanted = passes.logits == passes.tokens;
                let context = self.cache.context.map_or(config.max_positions, NonZeroUsize::get);
                passes.tokens = passes.tokens.max(context);
                passes.logits = if all_wanted { passes.tokens } else { passes.logits };
            }
            passes
        })?;
        if let Some(path) = &router.gates {
            let gates = Checkpoint::open_path(path, Access::Map)?;
            let replaced = model.load_gates(&gates)?;
            aside(&format!(
                "gates of {} of {} layers from {}",
                replaced.len(),
                model.config().layers,
                path.display()
            ));
        }
        if let Some(text) = &router.router {
            let routers = LayerRouters::parse(&model, text)?;
            model.set_routers(&routers)?;
            if model.locality() != Locality::Token {
                warn(
                    "--router: a token's experts depend on other tokens than itself: a prompt is read in one pass, and what comes of a \
                     text depends on how it is cut into passes",
                );
            }
        }
        Ok(model)
    }

    pub(crate) fn session_options(&self) -> SessionOptions {
        let options = SessionOptions::default().with_kv_dtype(self.cache.kv_type.into());
        match self.cache.context {
            Some(context) => options.with_context(context.get()),
            None => options,
        }
    }

    /// A session, in which routers draw from a seed.
    pub(crate) fn session(&self, model: &Model, seed: u64) -> Result<Session> {
        Ok(model.session(self.session_options().with_seed(seed))?)
    }
}

/// The format of the model's chats, or the one asked for, with a warning where it is a guess.
pub(crate) fn chat_format(
    source: &Source,
    asked: Option<&FormatName>,
    tokenizer: &Tokenizer,
) -> Result<ChatFormat> {
    let mut evidence = source.chat_evidence()?;
    let format = match asked {
        Some(FormatName::Mistral(version)) => ChatFormat::mistral(*version, tokenizer)?,
        Some(FormatName::Template(name)) => {
            let own = evidence.templates.iter().find(|template| template.name == *name);
            let template = own.cloned().map_or_else(|| Template::from_file(Path::new(name)), Ok)?;
            evidence.templates = vec![Template { name: "default".to_owned(), ..template }];
            ChatFormat::choose(&evidence, tokenizer)?
        }
        None => ChatFormat::choose(&evidence, tokenizer)?,
    };
    // Everybody knows that the demo was taught no format.
    if format.is_assumed() && !source.is_embedded() {
        warn(&format!("chat format: {}; --chat-format sets another", format.evidence()));
    }
    Ok(format)
}

/// Loads the tokenizer of a model, with warnings of what its files contradict each other in.
pub(crate) fn tokenizer(source: &Source, model: &Model) -> Result<Tokenizer> {
    let tokenizer = source.tokenizer()?.for_model(model.config().vocab_size)?;
    tokenizer.warnings().iter().for_each(|warning| warn(warning));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use moe_kernels::Backend;

    use super::*;

    #[test]
    fn the_demo_is_whole() {
        let demo = Source::embedded(DEMO);
        let config = demo.config().unwrap();
        let tokenizer = demo.tokenizer().unwrap().for_model(config.vocab_size).unwrap();
        assert_eq!(tokenizer.warnings(), [""; 0]);
        let wishes = demo.generation().unwrap().read().unwrap();
        assert!(wishes.sampling.temperature > 0.0 && wishes.warnings.is_empty());
        assert_eq!(demo.warnings().unwrap(), Vec::<String>::new());
        let checkpoint = demo.checkpoint(Access::Map).unwrap();
        assert_eq!(checkpoint.verify(&config).unwrap(), Vec::<&str>::new());
        Model::load(config, &checkpoint, Backend::best()).unwrap();
    }
}
