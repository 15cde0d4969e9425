//! Where two traces part.

use std::io::Read;

use moe_core::memory;

use super::{Pair, TokenRoute, TraceError, TraceReader, TraceWeights};
use crate::metrics::ChoiceAgreement;

/// A token in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPlace {
    /// The forward pass.
    pub step: u32,
    /// The layer.
    pub layer: u16,
    /// Identity of the sequence.
    pub sequence: u32,
    /// Position in the sequence.
    pub position: u32,
}

/// How two traces agree in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerAgreement {
    /// Of the kept experts of the tokens that both have.
    pub choices: ChoiceAgreement,
    /// Tokens with the same pairs, kept and refused, in the same order; weights may differ.
    pub same_pairs: u64,
    /// Largest difference of the combination weights of an expert that both have; 0 where either trace has no weights.
    pub weight_difference: f32,
    /// The first token with other experts.
    pub first_difference: Option<TokenPlace>,
}

/// Two traces of the same tokens, read in the same passes, compared token by token.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TraceDiff {
    /// Of each layer.
    pub layers: Vec<LayerAgreement>,
    /// The first token, in the order of the traces, with other experts.
    pub first_difference: Option<TokenPlace>,
}

impl TraceDiff {
    /// Reads two traces to their ends.
    ///
    /// # Errors
    ///
    /// Those of [`TraceReader::next`]; [`TraceError::Unfit`] where they are not of the same layers, or of other tokens or passes, naming
    /// the place.
    pub fn read(a: &mut TraceReader<impl Read>, b: &mut TraceReader<impl Read>) -> Result<Self, TraceError> {
        let (experts, others) = (&a.header().experts, &b.header().experts);
        if experts != others {
            return Err(TraceError::unfit(
                "experts of the layers",
                format!("{experts:?}"),
                format!("{others:?}"),
            ));
        }
        let weighed =
            [a.header(), b.header()].iter().all(|header| header.weights == TraceWeights::Combination);
        let mut diff = Self::default();
        memory::refill(&mut diff.layers, experts.len(), LayerAgreement::default(), "layers of a trace")?;
        let (mut one, mut other) = (TokenRoute::default(), TokenRoute::default());
        loop {
            let there = (a.next(&mut one)?, b.next(&mut other)?);
            match there {
                (false, false) => return Ok(diff),
                (true, true) => diff.add(&one, &other, weighed)?,
                (more, _) => {
                    let route = if more { &one } else { &other };
                    let found = if more { "only in the first" } else { "only in the second" };
                    let place =
                        format!("pass {}, layer {}, position {}", route.step, route.layer, route.position);
                    return Err(TraceError::unfit("tokens", format!("{place} in both"), found));
                }
            }
        }
    }

    fn add(&mut self, a: &TokenRoute, b: &TokenRoute, weighed: bool) -> Result<(), TraceError> {
        let place = |route: &TokenRoute| {
            let TokenRoute { step, layer, sequence, position, .. } = *route;
            TokenPlace { step, layer, sequence, position }
        };
        // A trace that does not know its tokens is of any.
        let other_token = a.token.zip(b.token).is_some_and(|(a, b)| a != b);
        if place(a) != place(b) || other_token {
            let tell = |route: &TokenRoute| {
                let TokenPlace { step, layer, sequence, position } = place(route);
                let token = route.token.map_or("unknown".to_owned(), |id| id.to_string());
                format!(
                    "pass {step}, layer {layer}, position {position} of sequence {sequence}, token {token}"
                )
            };
            return Err(TraceError::unfit("tokens", tell(a), tell(b)));
        }
        let layer = &mut self.layers[usize::from(a.layer)];
        let weight_in_b = |expert| b.kept.iter().find(|pair| pair.expert == expert).map(|pair| pair.weight);
        for pair in &a.kept {
            if let Some(weight) = weight_in_b(pair.expert).filter(|_| weighed) {
                layer.weight_difference = layer.weight_difference.max((pair.weight - weight).abs());
            }
        }
        let same = layer.choices.add(a.experts(), b.experts());
        let same_pairs = |a: &[Pair], b: &[Pair]| {
            let of = |pair: &Pair| (pair.expert, pair.rank);
            a.iter().map(of).eq(b.iter().map(of))
        };
        let same_choices = same_pairs(&a.kept, &b.kept) && same_pairs(&a.refused, &b.refused);
        layer.same_pairs += u64::from(same_choices);
        if !same {
            layer.first_difference.get_or_insert(place(a));
            self.first_difference.get_or_insert(place(a));
        }
        Ok(())
    }
}
