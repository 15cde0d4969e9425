//! Arrays `[tokens, layers, choices]` of one sequence, in either direction.

use std::io::{Read, Write};

use moe_core::memory;
use moe_router::trace::{Phase, TokenRoute, TraceWeights};

use super::sink::{Sink, next_pass};
use super::{ExchangeError, Exported, Place, Routes};

/// Stands for the experts of a token that nobody knows.
pub(super) const UNKNOWN: i64 = -1;
/// Positions without a route that an array may hold beyond as many as have one.
const MOST_HOLES: u64 = 1 << 16;

/// What a file has of a sequence.
pub(super) struct Grid<'a> {
    pub(super) tokens: usize,
    pub(super) layers: usize,
    pub(super) choices: usize,
    pub(super) sequence: u32,
    /// Position of the first token.
    pub(super) first: u32,
    /// Tokens that one pass read; those after them were read alone.
    pub(super) prompt: usize,
    /// Ids of tokens, of as many as are known.
    pub(super) ids: &'a [u32],
}

impl Grid<'_> {
    /// Gives all routes, and the pass after the last one. `cell` has the expert and the weight of a choice by its place in
    /// `[tokens, layers, choices]`.
    pub(super) fn give(
        &self,
        sink: &mut Sink<'_, impl Write>,
        mut pass: u32,
        cell: impl Fn([usize; 3]) -> (i64, f32),
        place: impl Fn([usize; 3]) -> Place,
    ) -> Result<u32, ExchangeError> {
        let mut begin = 0;
        while begin < self.tokens {
            let end = if begin < self.prompt { self.prompt.min(self.tokens) } else { begin + 1 };
            for layer in 0..self.layers {
                for t in begin..end {
                    self.give_one(sink, pass, [t, layer], &cell, &place)?;
                }
            }
            pass = next_pass(pass, place([begin, 0, 0]))?;
            begin = end;
        }
        Ok(pass)
    }

    fn give_one(
        &self,
        sink: &mut Sink<'_, impl Write>,
        pass: u32,
        [t, layer]: [usize; 2],
        cell: &impl Fn([usize; 3]) -> (i64, f32),
        place: &impl Fn([usize; 3]) -> Place,
    ) -> Result<(), ExchangeError> {
        let here = place([t, layer, 0]);
        if (0..self.choices).all(|c| cell([t, layer, c]).0 == UNKNOWN) {
            sink.imported.unknown += 1;
            return Ok(());
        }
        let position = u64::from(self.first) + t as u64;
        sink.start((pass, layer as u64), (self.sequence, position), here)?;
        if let Some(&id) = self.ids.get(t) {
            sink.name_token(id);
        }
        for c in 0..self.choices {
            let (expert, weight) = cell([t, layer, c]);
            sink.keep(expert, weight, place([t, layer, c]))?;
        }
        sink.take(None, here)
    }
}

/// What a router asked for, best first: kept and refused pairs by rank, as if there were no capacity.
pub(super) fn asked(route: &TokenRoute, experts: &mut Vec<u16>) -> Result<(), ExchangeError> {
    experts.clear();
    for (pair, _) in route.by_rank() {
        memory::push(experts, pair.requested, "experts of a token")?;
    }
    Ok(())
}

/// Which numbers an array has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// What routers asked for.
    Asked,
    /// Where pairs went, with weights; those that were refused have 0.
    Weighed,
}

/// Routes of a trace, by sequence, position and layer.
pub(super) struct Gathered {
    /// Of the header.
    pub(super) layers: usize,
    /// Experts of a token in a layer.
    pub(super) choices: usize,
    pub(super) exported: Exported,
    routes: Vec<Gist>,
    /// `choices` for each route.
    pairs: Vec<(u16, f32)>,
}

#[derive(Clone, Copy)]
struct Gist {
    /// Sequence, position, layer.
    key: (u32, u32, u16),
    /// Place of its pairs.
    at: usize,
    /// Whether several of the sequence were read at once.
    prefill: bool,
}

/// One sequence of them.
pub(super) struct Sequence<'a> {
    all: &'a Gathered,
    routes: &'a [Gist],
    pub(super) id: u32,
    /// Positions from 0 to the last one.
    pub(super) tokens: usize,
    /// Tokens at the beginning that were not read alone.
    pub(super) prompt: usize,
}

impl Gathered {
    /// Reads the rest of a trace.
    pub(super) fn read(reader: &mut Routes<'_, impl Read>, content: Content) -> Result<Self, ExchangeError> {
        let header = reader.header();
        if content == Content::Weighed && header.weights == TraceWeights::None {
            return Err(ExchangeError::unfit("weights", "combination weights", "weights=none"));
        }
        let (layers, exported) = (header.experts.len(), Exported::default());
        let mut all = Self { layers, choices: 0, exported, routes: Vec::new(), pairs: Vec::new() };
        let mut route = TokenRoute::default();
        while reader.next(&mut route)? {
            all.add(&route, content)?;
        }
        all.routes.sort_unstable_by_key(|gist| gist.key);
        let twice = all.routes.windows(2).find_map(|pair| match pair {
            [one, other] if one.key == other.key => Some(one.key),
            _ => None,
        });
        match twice {
            None => Ok(all),
            Some((sequence, position, layer)) => Err(ExchangeError::unfit(
                "tokens",
                "every token of a sequence once",
                format_args!("position {position} of sequence {sequence} twice in layer {layer}"),
            )),
        }
    }

    fn add(&mut self, route: &TokenRoute, content: Content) -> Result<(), ExchangeError> {
        let at = self.pairs.len();
        let pairs = &mut self.pairs;
        for (pair, is_kept) in route.by_rank() {
            let expert = if content == Content::Asked { pair.requested } else { pair.expert };
            let weight = if is_kept { pair.weight } else { 0.0 };
            memory::push(pairs, (expert, weight), "pairs of a trace")?;
        }
        let TokenRoute { sequence, position, layer, .. } = *route;
        let new = pairs.get(at..).unwrap_or_default();
        let choices = new.len();
        if self.routes.is_empty() {
            self.choices = choices;
        }
        let place = || format!("position {position} of sequence {sequence} in layer {layer}");
        if choices != self.choices || choices == 0 {
            let expected = format!("{} for every token, and at least 1", self.choices);
            return Err(ExchangeError::unfit("experts", expected, format_args!("{choices} at {}", place())));
        }
        if let Some((n, _)) =
            new.iter().enumerate().find(|(n, one)| new.iter().take(*n).any(|other| other.0 == one.0))
        {
            let found = format!("number {n} again at {}", place());
            return Err(ExchangeError::unfit("experts", "each once for a token", found));
        }
        let prefill = route.phase == Phase::Prefill;
        memory::push(
            &mut self.routes,
            Gist { key: (sequence, position, layer), at, prefill },
            "tokens of a trace",
        )?;
        self.exported.count(route);
        Ok(())
    }

    /// The sequences, one after the other.
    pub(super) fn sequences(&self) -> impl Iterator<Item = Result<Sequence<'_>, ExchangeError>> {
        self.routes.chunk_by(|one, other| one.key.0 == other.key.0).map(|routes| {
            let (id, last) = routes.last().map_or((0, 0), |gist| (gist.key.0, gist.key.1));
            let most = (routes.len() as u64).saturating_mul(2) + MOST_HOLES;
            let tokens = u64::from(last) + 1;
            if tokens > most {
                let expected = format!("less than {most}, for so few tokens of sequence {id}");
                return Err(ExchangeError::unfit("position", expected, last));
            }
            let alone = routes.iter().find(|gist| !gist.prefill).map(|gist| u64::from(gist.key.1));
            let prompt = alone.unwrap_or(tokens) as usize;
            Ok(Sequence { all: self, routes, id, tokens: tokens as usize, prompt })
        })
    }

    /// The only sequence, for files that hold one.
    pub(super) fn only(&self) -> Result<Option<Sequence<'_>>, ExchangeError> {
        let mut sequences = self.sequences();
        let first = sequences.next().transpose()?;
        match sequences.next() {
            None => Ok(first),
            Some(_) => Err(ExchangeError::unfit("sequences", "one, or one to be named", "several")),
        }
    }
}

impl Sequence<'_> {
    /// Experts and weights of a token in a layer, if the trace has it.
    pub(super) fn pairs(&self, token: usize, layer: usize) -> Option<&[(u16, f32)]> {
        let key = (self.id, u32::try_from(token).ok()?, u16::try_from(layer).ok()?);
        let found = self.routes.binary_search_by_key(&key, |gist| gist.key).ok()?;
        let at = self.routes.get(found)?.at;
        self.all.pairs.get(at..at + self.all.choices)
    }

    /// Expert ids of a token in a layer, [`UNKNOWN`] where the trace has none.
    pub(super) fn experts(&self, token: usize, layer: usize) -> impl Iterator<Item = i64> {
        let pairs = self.pairs(token, layer);
        (0..self.all.choices).map(move |c| {
            pairs.and_then(|pairs| pairs.get(c)).map_or(UNKNOWN, |&(expert, _)| i64::from(expert))
        })
    }

    /// Weights of a token in a layer, 0 where the trace has none.
    pub(super) fn weights(&self, token: usize, layer: usize) -> impl Iterator<Item = f32> {
        let pairs = self.pairs(token, layer);
        (0..self.all.choices)
            .map(move |c| pairs.and_then(|pairs| pairs.get(c)).map_or(0.0, |&(_, weight)| weight))
    }
}
