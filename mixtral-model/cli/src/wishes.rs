//! How tokens are chosen, and how many: what the command line says, and for the rest what the model wishes.

use mixtral_model::{GenerationConfig, Sampling, Source};

use crate::args::SamplingArgs;
use crate::failure::{Result, warn};
use crate::output::harmless;

pub(crate) struct Wishes {
    pub(crate) sampling: Sampling,
    of_model: GenerationConfig,
    max_tokens: Option<usize>,
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
        let sampling = args.apply(of_model.sampling.clone());
        sampling.check()?;
        Ok(Self { sampling, of_model, max_tokens })
    }

    /// The most tokens to generate after so many, if anybody says.
    pub(crate) fn max_tokens(&self, before: usize) -> Result<Option<usize>> {
        Ok(match self.max_tokens {
            None => self.of_model.max_new_tokens(before)?,
            given => given,
        })
    }
}
