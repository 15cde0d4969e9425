//! Routers that do not look at the logits.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, numerics};

use crate::draw::{self, Stream};
use crate::select;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Function {
    Seeded(u64),
    Table(Vec<u32>),
}

/// A token's expert is a fixed function of its vocabulary id, with weight 1 (Hash layers, Roller et al., [2106.04426]).
///
/// Either a random one, `hash(seed, id) mod E`, with a seed for each layer if they should differ, or a
/// [table](Self::table), which may be balanced by the frequency of the words.
///
/// A masked expert is refused: the function knows of no other. Locality: token.
///
/// [2106.04426]: https://arxiv.org/abs/2106.04426
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash(Function);

impl Hash {
    /// A random function of the id: `⌊E·u⌋` where u, of 24 bits, is [`numerics::uniform`] of (seed, id).
    pub fn new(seed: u64) -> Self {
        Self(Function::Seeded(seed))
    }

    /// The expert of id i is `table[i]`.
    pub fn table(table: Vec<u32>) -> Self {
        Self(Function::Table(table))
    }
}

impl Router for Hash {
    /// Pushes one expert for every token that is not padding.
    ///
    /// # Errors
    ///
    /// If the input has no token ids, or one that the table lacks.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let missing =
            |expected: String, found| Err(Error::Router { setting: "hash of token ids", expected, found });
        let Some(ids) = input.context.token_ids else {
            return missing("token ids in the input".into(), "none".into());
        };
        for token in input.present() {
            let id = ids[token];
            let expert = match &self.0 {
                Function::Seeded(seed) => {
                    let u = f64::from(numerics::uniform(*seed, &[u64::from(id)]));
                    (u * input.experts() as f64) as usize
                }
                Function::Table(table) => match table.get(id as usize) {
                    Some(&expert) => expert as usize,
                    None => return missing(format!("an id below {}", table.len()), id.to_string()),
                },
            };
            // An expert out of range is assigned; sealing reports it.
            if expert < input.experts() && input.is_masked(token, expert) {
                out.refuse(token, expert);
            } else {
                out.assign(token, expert, 1.0);
            }
        }
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

/// k different experts at random, each with weight 1/k: what a learned gate must beat. Of masked experts it takes none, so that
/// there may be n < k, with weight 1/n.
///
/// The experts with the k greatest draws of (seed, layer, sequence, position, expert), best first, ties to the lower expert.
///
/// Locality: token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomChoice {
    k: usize,
}

impl RandomChoice {
    /// `k` experts a token.
    ///
    /// # Errors
    ///
    /// If `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        if k == 0 {
            let expected = "k of at least 1".into();
            return Err(Error::Router { setting: "random choice", expected, found: "0".into() });
        }
        Ok(Self { k })
    }
}

impl Router for RandomChoice {
    /// Pushes k experts for every token that is not padding.
    ///
    /// # Errors
    ///
    /// If there are fewer than k experts.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        if self.k > experts {
            let expected = format!("at least {} experts", self.k);
            return Err(Error::Router { setting: "random choice", expected, found: experts.to_string() });
        }
        out.with_scratch(|out, scratch| {
            for t in input.present() {
                let open = (0..experts).filter(|&e| !input.is_masked(t, e));
                let draws = open.map(|e| (e, draw::uniform(&input.context, Stream::RandomChoice, t, e)));
                select::best_of(draws, self.k, &mut scratch.keys);
                for &key in &scratch.keys {
                    out.assign(t, select::index(key), 1.0 / scratch.keys.len() as f32);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
