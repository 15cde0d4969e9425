//! How tokens are chosen, and how many: what the command line says, and for the rest what the model wishes.

use mixtral_model::{GenerationConfig, Sampling, Source};

use crate::args::SamplingArgs;
use crate::failure::{Failure, Result, warn};
use crate::output::harmless;

pub(crate) struct Wishes {
    pub(crate) sampling: Sampling,
    of_model: GenerationConfig,
    max_tokens: Option<usize>,
}

/// A seed that nobody chose, short enough to be typed.
fn random_seed() -> Result<u64> {
    getrandom::u32().map(u64::from).map_err(|error| {
        Failure::not_as_expected(
            "--seed",
            format!("expected a number, as the system has no random ones: {error}"),
        )
    })
}

impl Wishes {
    /// Those of the model's `generation_config.json`, but for what was given; with warnings of what cannot be done.
    pub(crate) fn new(source: &Source, args: &SamplingArgs, max_tokens: Option<usize>) -> Result<Self> {
        let mut file = args.replace(source.generation()?);
        if max_tokens.is_some() {
            file = file.without("max_new_tokens").without("max_length");
        }
        let of_model = file.read()?;
        for warning in &of_model.warnings {
            warn(&harmless(warning));
        }
        let mut sampling = args.apply(of_model.sampling.clone());
        sampling.check()?;
        if sampling.temperature > 0.0 {
            sampling.seed = args.seed.map_or_else(random_seed, Ok)?;
        }
        Ok(Self { sampling, of_model, max_tokens })
    }

    /// The seed of draws, where there are any.
    pub(crate) fn seed(&self) -> Option<u64> {
        (self.sampling.temperature > 0.0).then_some(self.sampling.seed)
    }

    /// The seed of what routers draw: the same, or what was given though nothing else is drawn.
    pub(crate) fn router_seed(&self, args: &SamplingArgs) -> u64 {
        args.seed.unwrap_or(self.sampling.seed)
    }

    /// The most tokens to generate after so many, if anybody says.
    pub(crate) fn max_tokens(&self, before: usize) -> Result<Option<usize>> {
        Ok(match self.max_tokens {
            None => self.of_model.max_new_tokens(before)?,
            given => given,
        })
    }
}
