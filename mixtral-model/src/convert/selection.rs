//! Some of a model's tensors, by part, layer and expert.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::manifest::{Kind, LayerPart, TensorKey};
use crate::{Config, LayerExperts};

/// Tensors of a part of the model, of some layers and experts or of all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Selection {
    part: Part,
    layers: Option<Numbers>,
    experts: Option<Numbers>,
}

/// A part of the model that can be named.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    All,
    Of(Kind),
    Matrix(Kind, &'static str),
}

/// Numbers and ranges of them, in the order they were given.
#[derive(Clone, Debug, PartialEq)]
struct Numbers(Vec<RangeInclusive<usize>>);

const PARTS: [Part; 12] = [
    Part::All,
    Part::Of(Kind::Embedding),
    Part::Of(Kind::Head),
    Part::Of(Kind::Attention),
    Part::Matrix(Kind::Attention, "q"),
    Part::Matrix(Kind::Attention, "k"),
    Part::Matrix(Kind::Attention, "v"),
    Part::Matrix(Kind::Attention, "o"),
    Part::Of(Kind::Experts),
    Part::Matrix(Kind::Experts, "w1"),
    Part::Matrix(Kind::Experts, "w2"),
    Part::Matrix(Kind::Experts, "w3"),
];

impl Selection {
    /// The whole model.
    pub(super) fn all() -> Self {
        Self { part: Part::All, layers: None, experts: None }
    }

    pub(super) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Whether a tensor is one of them.
    pub(super) fn has(&self, key: TensorKey) -> bool {
        let (layer, expert) = match key {
            TensorKey::Layer { layer, part: LayerPart::Expert { expert, .. } } => (Some(layer), Some(expert)),
            TensorKey::Layer { layer, .. } => (Some(layer), None),
            _ => (None, None),
        };
        let among = |numbers: &Option<Numbers>, number: Option<usize>| match numbers {
            None => true,
            Some(numbers) => {
                number.is_some_and(|number| numbers.0.iter().any(|range| range.contains(&number)))
            }
        };
        let of_part = match self.part {
            Part::All => true,
            Part::Of(kind) => key.kind() == kind,
            Part::Matrix(kind, name) => key.kind() == kind && matrix(key) == Some(name),
        };
        of_part && among(&self.layers, layer) && among(&self.experts, expert)
    }

    /// Checks that a model has all that is named; what is expected of a selection where it has not.
    pub(super) fn check(&self, config: &Config) -> Result<(), String> {
        let beyond = |numbers: &Option<Numbers>, count: usize| {
            numbers.as_ref().is_some_and(|numbers| numbers.0.iter().any(|range| *range.end() >= count))
        };
        if beyond(&self.layers, config.layers) {
            return Err(format!("layers below {}", config.layers));
        }
        // Every expert that is named must be in one of the layers at least.
        let named = |layer: &usize| match &self.layers {
            Some(layers) => layers.0.iter().any(|range| range.contains(layer)),
            None => true,
        };
        let most = match &config.experts {
            LayerExperts::Same(experts) => *experts,
            of_each => (0..config.layers).filter(named).map(|layer| of_each.of(layer)).max().unwrap_or(0),
        };
        if beyond(&self.experts, most) {
            return Err(format!("experts below {most}"));
        }
        if self.part == Part::Of(Kind::Head) && config.tie_embeddings {
            return Err("embedding, as the head of this model is its embedding".to_owned());
        }
        Ok(())
    }
}

/// The name of a tensor among those of its kind in a layer: `q`, `k`, `v`, `o`, or `w1`, `w2`, `w3`.
pub(super) fn matrix(key: TensorKey) -> Option<&'static str> {
    let TensorKey::Layer { part, .. } = key else { return None };
    match part {
        LayerPart::Query => Some("q"),
        LayerPart::Key => Some("k"),
        LayerPart::Value => Some("v"),
        LayerPart::Output => Some("o"),
        LayerPart::Expert { matrix, .. } => Some(matrix.name()),
        _ => None,
    }
}

impl FromStr for Selection {
    /// What is expected.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, experts) = match text.split_once(':') {
            Some((rest, experts)) => (rest, Some(experts.parse()?)),
            None => (text, None),
        };
        let (name, layers) = match rest.split_once('@') {
            Some((name, layers)) => (name, Some(layers.parse()?)),
            None => (rest, None),
        };
        if matches!(name, "gate" | "norms") {
            return Err(format!("another part, as {name} is never quantised"));
        }
        let part = PARTS.into_iter().find(|part| part.to_string() == name).ok_or_else(|| {
            let names = PARTS.map(|part| part.to_string()).join(", ");
            format!("a part: {names}")
        })?;
        let in_layers = !matches!(part, Part::Of(Kind::Embedding | Kind::Head));
        if layers.is_some() && !in_layers {
            return Err(format!("no layers, as {name} is in none"));
        }
        if experts.is_some()
            && !matches!(part, Part::All | Part::Of(Kind::Experts) | Part::Matrix(Kind::Experts, _))
        {
            return Err(format!("no experts, as {name} is of none"));
        }
        Ok(Self { part, layers, experts })
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let range = first.parse().ok()?..=last.parse().ok()?;
            Some(range).filter(|range| !range.is_empty())
        };
        let ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
        ranges.map(Self).ok_or_else(|| "numbers and ranges with commas between, such as 0-3,31".to_owned())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Of(kind) => f.write_str(kind.name()),
            Self::Matrix(kind, name) => write!(f, "{}.{name}", kind.name()),
        }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let (first, last) = (range.start(), range.end());
            write!(f, "{}{first}", if n == 0 { "" } else { "," })?;
            if first != last {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.part.fmt(f)?;
        self.layers.iter().try_for_each(|layers| write!(f, "@{layers}"))?;
        self.experts.iter().try_for_each(|experts| write!(f, ":{experts}"))
    }
}
