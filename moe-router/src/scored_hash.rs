//! Experts by a function of the token's vocabulary id, weights by the gate.

use moe_core::{
    Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, TokenContext, numerics,
};
use ndarray::ArrayViewMut2;

use crate::scored::check_scale;
use crate::{Normalizer, Score, select};

#[derive(Clone, Debug, PartialEq)]
enum Function {
    Seeded(u64),
    /// `[ids, k]`, row by row.
    Table(Vec<u32>),
}

/// A token's k experts are a fixed function of its vocabulary id, as in [`Hash`](struct@crate::Hash), and their weights the
/// scores of the gate: the first layers of DeepSeek-V4, [2606.19348].
///
/// From a token's id i and logits l, `[E]`,
///
/// ```text
/// S = table[i]                                   k different experts, in the table's order
/// wₑ = scale · normalized(score(l))ₑ             over e in S
/// ```
///
/// Without a [table](Self::table) the function is a random one: the experts with the k greatest draws of (seed, id, expert), best
/// first, ties to the lower expert.
///
/// A masked expert is refused, and is no part of what weights are divided by: the function knows of no other. Locality: token.
///
/// [2606.19348]: https://arxiv.org/abs/2606.19348
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredHash {
    k: usize,
    function: Function,
    score: Score,
    normalizer: Normalizer,
    scale: f32,
}

impl ScoredHash {
    /// `k` experts by a random function of the id, weighed by `score`.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `k` is 0.
    pub fn new(k: usize, score: Score) -> Result<Self> {
        if k == 0 {
            return Err(wrong("k of at least 1", "0"));
        }
        Ok(Self { k, function: Function::Seeded(0), score, normalizer: Normalizer::None, scale: 1.0 })
    }

    /// DeepSeek-V4: s = √softplus(l), `w = scale · s / (Σ s + 1e-20)`. Its configuration may name another score.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `k` is 0 or `scale` not finite.
    pub fn deepseek_v4(k: usize, scale: f32) -> Result<Self> {
        Self::new(k, Score::SqrtSoftplus)?.normalized(Normalizer::Sum { epsilon: 1e-20 })?.scaled(scale)
    }

    /// The same with another random function.
    pub fn seeded(self, seed: u64) -> Self {
        Self { function: Function::Seeded(seed), ..self }
    }

    /// The same with the experts of id i in `table[i·k..(i + 1)·k]`, as `tid2eid` of a checkpoint has them.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if that is not whole rows, or a row has an expert twice.
    pub fn table(self, table: impl Into<Vec<u32>>) -> Result<Self> {
        let table = table.into();
        if !table.len().is_multiple_of(self.k) {
            return Err(wrong(format!("whole rows of {}", self.k), format!("{} experts", table.len())));
        }
        let twice = |row: &&[u32]| (1..row.len()).any(|i| row[..i].contains(&row[i]));
        if let Some(row) = table.chunks(self.k).find(twice) {
            return Err(wrong("different experts in each row", format!("{row:?}")));
        }
        Ok(Self { function: Function::Table(table), ..self })
    }

    /// The same choice, its scores made into weights otherwise.
    ///
    /// # Errors
    ///
    /// If the normaliser is [not valid](Normalizer::check).
    pub fn normalized(self, normalizer: Normalizer) -> Result<Self> {
        normalizer.check()?;
        Ok(Self { normalizer, ..self })
    }

    /// The same, with all weights multiplied by `scale` in the end.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `scale` is not finite.
    pub fn scaled(self, scale: f32) -> Result<Self> {
        check_scale(scale)?;
        Ok(Self { scale, ..self })
    }

    /// Finds the experts of an id, by rank, as keys.
    fn experts_of(&self, id: u32, experts: usize, keys: &mut Vec<u64>) -> Result<()> {
        match &self.function {
            Function::Seeded(seed) => {
                let draw = |e: usize| (e, numerics::uniform(*seed, &[u64::from(id), e as u64]));
                select::best_of((0..experts).map(draw), self.k, keys);
            }
            Function::Table(table) => {
                let ids = table.len() / self.k;
                let Some(row) = table.chunks(self.k).nth(id as usize) else {
                    return Err(wrong(format!("an id below {ids}"), id.to_string()));
                };
                if let Some(e) = row.iter().find(|e| **e as usize >= experts) {
                    return Err(wrong(format!("experts below {experts}"), format!("{e} for id {id}")));
                }
                keys.clear();
                keys.extend(row.iter().map(|&e| select::key(0.0, e as usize)));
            }
        }
        Ok(())
    }
}

impl Router for ScoredHash {
    /// Pushes k experts for every token that is not padding.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if there are fewer than k experts, no token ids, an id that the table lacks, or an expert in the table
    /// that the layer lacks.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        let Some(ids) = input.context.token_ids else {
            return Err(wrong("token ids in the input", "none"));
        };
        if self.k > experts {
            return Err(wrong(format!("at least {} experts", self.k), experts.to_string()));
        }
        out.with_scratch(|out, RouteScratch { values, keys, .. }| {
            for token in input.present() {
                self.experts_of(ids[token], experts, keys)?;
                values.clear();
                values.extend(input.logits.row(token));
                self.score.apply(values);
                let open = keys.iter().map(|&key| select::index(key)).filter(|&e| !input.is_masked(token, e));
                for expert in open {
                    values.push(values[expert]);
                }
                let weights = &mut values[experts..];
                self.normalizer.apply(weights);
                let mut weights = weights.iter().map(|w| w * self.scale);
                for &key in &*keys {
                    let expert = select::index(key);
                    let weight = if input.is_masked(token, expert) { None } else { weights.next() };
                    match weight {
                        Some(weight) => out.assign(token, expert, weight),
                        None => out.refuse(token, expert),
                    }
                }
            }
            Ok(())
        })
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }

    /// What the weights are made of, for all experts: without normaliser and scale. Softmax where that is the logit.
    fn scores(&self, _: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.score.apply_to_rows(logits);
    }
}

fn wrong(expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Router { setting: "hash of token ids", expected: expected.into(), found: found.into() }
}
