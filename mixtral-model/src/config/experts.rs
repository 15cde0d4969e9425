//! How many experts each layer has.

use std::fmt;

use serde::{Serialize, Serializer};

use super::fields::Fields;
use crate::Result;

/// How many experts each layer has: mostly as many as the others. Models that experts were taken out of may have another number
/// in every layer, and their `num_local_experts` is a list, as those who publish such models write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerExperts {
    /// So many in every layer.
    Same(usize),
    /// One number a layer, from the first.
    Each(Vec<usize>),
}

impl LayerExperts {
    /// The experts of a layer, counted from 0; none where [`Each`](Self::Each) has no number for it.
    pub fn of(&self, layer: usize) -> usize {
        match self {
            Self::Same(experts) => *experts,
            Self::Each(experts) => experts.get(layer).copied().unwrap_or(0),
        }
    }

    /// The experts of the layer that has most.
    pub fn most(&self) -> usize {
        match self {
            Self::Same(experts) => *experts,
            Self::Each(experts) => experts.iter().copied().max().unwrap_or(0),
        }
    }

    /// The experts of the layer that has fewest.
    pub fn least(&self) -> usize {
        match self {
            Self::Same(experts) => *experts,
            Self::Each(experts) => experts.iter().copied().min().unwrap_or(0),
        }
    }

    /// The experts of so many layers together, none counted beyond the first `at_most` of a layer; saturating.
    pub(crate) fn total(&self, layers: usize, at_most: usize) -> u64 {
        match self {
            Self::Same(experts) => (*experts.min(&at_most) as u64).saturating_mul(layers as u64),
            Self::Each(experts) => experts
                .iter()
                .take(layers)
                .fold(0, |sum: u64, &experts| sum.saturating_add(experts.min(at_most) as u64)),
        }
    }

    /// A list of one number a layer, told as one number where all are the same; `None` if it is of so many layers not.
    pub(crate) fn each(experts: Vec<usize>, layers: usize) -> Option<Self> {
        match experts[..] {
            _ if experts.len() != layers => None,
            [first, ..] if experts.iter().all(|&experts| experts == first) => Some(Self::Same(first)),
            _ => Some(Self::Each(experts)),
        }
    }

    /// A field that is a number, or a list of one number a layer.
    pub(super) fn read(fields: &Fields<'_>, field: &str, layers: usize) -> Result<Option<Self>> {
        let Some(items) = fields.get(field).and_then(|value| value.as_array()) else {
            return Ok(fields.size(field)?.map(Self::Same));
        };
        let numbers: Option<Vec<_>> = items.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect();
        let expected = || fields.error(field, format!("a number, or one for each of {layers} layers"));
        numbers.and_then(|experts| Self::each(experts, layers)).map(Some).ok_or_else(expected)
    }
}

impl From<usize> for LayerExperts {
    fn from(experts: usize) -> Self {
        Self::Same(experts)
    }
}

impl Serialize for LayerExperts {
    /// As `config.json` has it: a number, or a list.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Same(experts) => experts.serialize(serializer),
            Self::Each(experts) => experts.serialize(serializer),
        }
    }
}

impl fmt::Display for LayerExperts {
    /// `8`, or `4 to 8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(experts) => write!(f, "{experts}"),
            Self::Each(_) => write!(f, "{} to {}", self.least(), self.most()),
        }
    }
}
