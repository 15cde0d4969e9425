//! Which type each tensor gets: a list of choices, of which the last that concerns a tensor counts.

use std::fmt;
use std::str::FromStr;

use moe_kernels::{BlockType, WeightFormat};

use super::Mix;
use super::selection::Selection;
use crate::manifest::{Kind, TensorKey};
use crate::{Config, Error, Result};

/// A type for some of a model's tensors. Written `TYPE`, or `SELECTION=TYPE`:
///
/// ```text
/// TYPE       a type, such as q4_k or bf16, or one of llama.cpp's mixes, such as q4_k_m
/// SELECTION  PART, PART@LAYERS, PART:EXPERTS or PART@LAYERS:EXPERTS
/// PART       all
///            embedding, head
///            attention, or one matrix of it: attention.q, .k, .v or .o
///            experts, or one matrix of each: experts.w1, .w2 or .w3
/// LAYERS,    numbers from 0 and ranges of them, both ends included, with commas between: 0-3,31
/// EXPERTS
/// ```
///
/// ```
/// let choice: mixtral_model::convert::Choice = "experts.w2@0-3,31=q6_k".parse().unwrap();
/// assert_eq!(choice.to_string(), "experts.w2@0-3,31=q6_k");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    selection: Selection,
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Format(WeightFormat),
    Mix(Mix),
}

/// The choices for a model. Where none concerns a tensor, it stays as it is stored.
///
/// Norms and gates are never quantised: choices of block types pass them by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe(Vec<Choice>);

impl Recipe {
    /// These choices; later ones count for more.
    pub fn new(choices: Vec<Choice>) -> Self {
        Self(choices)
    }

    /// The type of a tensor; `None` if it stays as it is.
    ///
    /// Some mixes depend on whether there are importances.
    pub(crate) fn format(&self, key: TensorKey, config: &Config, importances: bool) -> Option<WeightFormat> {
        let whole = matches!(key.kind(), Kind::Gate | Kind::Norms);
        let concerned = self.0.iter().rev().filter(|choice| choice.selection.has(key));
        let mut formats = concerned.map(|choice| match choice.target {
            Target::Format(format) => format,
            Target::Mix(mix) => mix.of(key, config, importances).into(),
        });
        formats.find(|format| !whole || matches!(format, WeightFormat::Plain(_)))
    }

    /// The mix that was chosen for the whole model, if that was the last choice for all of it.
    pub(crate) fn mix(&self) -> Option<Mix> {
        let whole = self.0.iter().rev().find(|choice| choice.selection.is_all())?;
        match whole.target {
            Target::Mix(mix) => Some(mix),
            Target::Format(_) => None,
        }
    }

    /// Checks that every choice concerns something of a model.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a layer or an expert that there is not, and the head of a model without one of its own.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        for choice in &self.0 {
            choice.selection.check(config).map_err(|expected| Error::Setting {
                setting: "dtype",
                expected,
                found: choice.to_string(),
            })?;
        }
        Ok(())
    }
}

impl Choice {
    /// A type for the whole model.
    pub fn all(format: WeightFormat) -> Self {
        Self { selection: Selection::all(), target: Target::Format(format) }
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let error =
            |expected: String| Error::Setting { setting: "dtype", expected, found: format!("{text:?}") };
        let (selection, target) = match text.split_once('=') {
            Some((selection, target)) => (selection.parse().map_err(error)?, target),
            None => (Selection::all(), text),
        };
        Ok(Self { selection, target: target.parse().map_err(error)? })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(mix) = Mix::ALL.iter().find(|mix| mix.name() == name) {
            return Ok(Self::Mix(*mix));
        }
        let can_be_made = |format: &WeightFormat| match format {
            WeightFormat::Blocks(block) => block.can_be_made(),
            _ => true,
        };
        let format = name.parse::<WeightFormat>().ok().filter(can_be_made);
        format.map(Self::Format).ok_or_else(|| {
            let blocks = BlockType::ALL.iter().filter(|block| block.can_be_made()).map(|block| block.name());
            let types = ["f32", "f16", "bf16"].into_iter().chain(blocks).collect::<Vec<_>>().join(", ");
            let mixes = Mix::ALL.iter().map(|mix| mix.name()).collect::<Vec<_>>().join(", ");
            format!("a type ({types}) or a mix ({mixes})")
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.selection.is_all() {
            write!(f, "{}=", self.selection)?;
        }
        match self.target {
            Target::Format(format) => format.fmt(f),
            Target::Mix(mix) => f.write_str(mix.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_kernels::Dtype;

    use super::*;
    use crate::LayerExperts;
    use crate::manifest::{ExpertMatrix, LayerPart};

    fn recipe(choices: &[&str]) -> Recipe {
        Recipe::new(choices.iter().map(|choice| choice.parse().unwrap()).collect())
    }

    fn expert(layer: usize, expert: usize, matrix: ExpertMatrix) -> TensorKey {
        TensorKey::Layer { layer, part: LayerPart::Expert { expert, matrix } }
    }

    #[test]
    fn the_last_choice_counts() {
        let config = Config::mixtral_8x7b();
        let recipe = recipe(&["q4_k", "experts.w2@0-1,30=q6_k", "experts:7=q8_0", "attention.v=bf16"]);
        for (key, expected) in [
            (expert(0, 0, ExpertMatrix::W1), "q4_k"),
            (expert(1, 6, ExpertMatrix::W2), "q6_k"),
            (expert(2, 6, ExpertMatrix::W2), "q4_k"),
            (expert(30, 0, ExpertMatrix::W2), "q6_k"),
            (expert(1, 7, ExpertMatrix::W2), "q8_0"),
            (TensorKey::Layer { layer: 3, part: LayerPart::Value }, "bf16"),
            (TensorKey::Layer { layer: 3, part: LayerPart::Key }, "q4_k"),
            (TensorKey::Head, "q4_k"),
        ] {
            assert_eq!(recipe.format(key, &config, false).unwrap().to_string(), expected, "{key}");
        }
        assert_eq!(recipe.format(TensorKey::FinalNorm, &config, false), None);
        let gate = TensorKey::Layer { layer: 0, part: LayerPart::Gate };
        assert_eq!(recipe.format(gate, &config, false), None);
    }

    #[test]
    fn norms_and_gates_take_plain_types_alone() {
        let config = Config::mixtral_8x7b();
        let recipe = recipe(&["bf16", "q4_k_m"]);
        let gate = TensorKey::Layer { layer: 0, part: LayerPart::Gate };
        assert_eq!(recipe.format(gate, &config, false), Some(Dtype::Bf16.into()));
        assert_eq!(recipe.mix().map(Mix::name), Some("q4_k_m"));
    }

    #[test]
    fn what_is_no_choice() {
        for (text, expected) in [
            ("q9_k", "a type (f32, f16, bf16, q8_0"),
            ("iq3_s", "a type (f32, f16, bf16, q8_0"),
            ("Q4_K", "a type (f32"),
            ("", "a type (f32"),
            ("gate=q8_0", "is never quantised"),
            ("norms=q8_0", "is never quantised"),
            ("mlp=q8_0", "a part: all, embedding"),
            ("experts.w4=q8_0", "a part: all, embedding"),
            ("embedding@3=q8_0", "no layers"),
            ("attention:3=q8_0", "no experts"),
            ("experts@=q8_0", "numbers and ranges"),
            ("experts@3-1=q8_0", "numbers and ranges"),
            ("experts@1-=q8_0", "numbers and ranges"),
            ("experts:a=q8_0", "numbers and ranges"),
        ] {
            let error = text.parse::<Choice>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn choices_that_concern_nothing() {
        let mut config = Config::mixtral_8x7b();
        let check =
            |choice: &str, config: &Config| recipe(&[choice]).check(config).map_err(|e| e.to_string());
        check("experts@31:7=q8_0", &config).unwrap();
        check("head=q8_0", &config).unwrap();
        assert!(check("experts@30-32=q8_0", &config).unwrap_err().contains("layers below 32"));
        assert!(check("experts:8=q8_0", &config).unwrap_err().contains("experts below 8"));
        config.experts = LayerExperts::Each((0..32).map(|n| if n == 1 { 2 } else { 8 }).collect());
        check("experts@0-1:7=q8_0", &config).unwrap();
        assert!(check("experts@1:5=q8_0", &config).unwrap_err().contains("experts below 2"));
        config.tie_embeddings = true;
        assert!(check("head=q8_0", &config).unwrap_err().contains("embedding"));
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["q4_k", "q4_k_m", "experts.w2@0-3,31:1,5=q6_k", "attention=bf16", "head=q5_0_mix"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
    }
}
