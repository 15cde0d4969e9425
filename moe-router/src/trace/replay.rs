//! Routing as recorded.

use std::io::Read;

use moe_core::{Assignments, Error, Locality, Result as CoreResult, RouteInput, Router, memory, numerics};

use super::{Pair, TokenRoute, TraceError, TraceHeader, TraceReader, TraceWeights};

/// Where a replay's weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplayWeights {
    /// The trace.
    #[default]
    Recorded,
    /// The logits at hand: softmax over those of the recorded experts, as Mixtral's router makes them.
    Live,
}

/// Sends every token to the experts that a trace has for its layer, sequence and position (router replay: R3,
/// [2510.11370](https://arxiv.org/abs/2510.11370), takes recorded experts with weights from the logits at hand).
///
/// Pairs that were refused are refused again, in their rank; one that was rerouted counts as asked for where it went. A token that the
/// trace has not is an error; so is one with another id, and one that it has twice. It holds all of the trace: 16 bytes a pair, and 48 a token and layer.
#[derive(Clone, Debug)]
pub struct Replay {
    header: TraceHeader,
    weights: ReplayWeights,
    /// By layer, sequence and position.
    tokens: Vec<Entry>,
    pairs: Vec<(Pair, bool)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Layer, sequence, position.
    key: [u32; 3],
    /// Of its pairs.
    begin: usize,
    end: usize,
    /// The token's id, if the trace says it.
    token: Option<u32>,
    /// Where they lie in the trace.
    offset: u64,
}

impl Replay {
    /// Reads a whole trace.
    ///
    /// # Errors
    ///
    /// Those of [`TraceReader`]; [`TraceError::Unfit`] for recorded weights of a trace that has none; [`TraceError::Damaged`] where a token
    /// of a sequence is there twice; [`TraceError::OutOfMemory`].
    pub fn read(source: impl Read, weights: ReplayWeights) -> Result<Self, TraceError> {
        let mut reader = TraceReader::new(source)?;
        if weights == ReplayWeights::Recorded && reader.header().weights == TraceWeights::None {
            return Err(TraceError::unfit(
                "weights to replay",
                "those of the logits at hand",
                "weights=none",
            ));
        }
        let (mut tokens, mut pairs) = (Vec::new(), Vec::<(Pair, bool)>::new());
        let mut route = TokenRoute::default();
        while reader.next(&mut route)? {
            let begin = pairs.len();
            memory::reserve(&mut pairs, route.kept.len() + route.refused.len(), "pairs of a trace")?;
            pairs.extend(route.by_rank().map(|(pair, is_kept)| (*pair, is_kept)));
            memory::reserve(&mut tokens, 1, "tokens of a trace")?;
            let key = [u32::from(route.layer), route.sequence, route.position];
            let (token, offset) = (route.token, route.offset);
            tokens.push(Entry { key, begin, end: pairs.len(), token, offset });
        }
        tokens.sort_unstable_by_key(|entry: &Entry| (entry.key, entry.offset));
        if let Some([_, Entry { key, offset, .. }]) = tokens.windows(2).find_map(|pair| match pair {
            [a, b] if a.key == b.key => Some([a, b]),
            _ => None,
        }) {
            let [layer, sequence, position] = key;
            let found = format!("position {position} of sequence {sequence} twice in layer {layer}");
            return Err(TraceError::damaged(*offset, "every token of a sequence once, to route by", found));
        }
        Ok(Self { header: reader.header().clone(), weights, tokens, pairs })
    }

    /// What the trace says of itself.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }
}

impl Router for Replay {
    /// # Errors
    ///
    /// [`Error::Router`] for a token that the trace has not, or another number of experts than the trace's layer has.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> CoreResult<()> {
        let layer = input.context.layer;
        let recorded = self.header.experts.get(layer).map(|&experts| usize::from(experts));
        if recorded != Some(input.experts()) {
            let expected = match recorded {
                Some(experts) => format!("{experts} experts in layer {layer}"),
                None => format!("a layer below {}", self.header.experts.len()),
            };
            return Err(Error::Router {
                setting: "trace",
                expected,
                found: format!("{} experts in layer {layer}", input.experts()),
            });
        }
        out.with_scratch(|out, scratch| {
            for t in input.present() {
                let [layer, sequence, position] = input.context.place(t);
                let entry = self.find([layer, sequence, position]).ok_or_else(|| Error::Router {
                    setting: "trace",
                    expected: format!("position {position} of sequence {sequence} in layer {layer}"),
                    found: "no such token".to_owned(),
                })?;
                let here = input.context.token_ids.and_then(|ids| ids.get(t)).copied();
                if let Some((recorded, found)) =
                    entry.token.zip(here).filter(|(recorded, found)| recorded != found)
                {
                    let at = format!("position {position} of sequence {sequence}");
                    let expected = format!("token {recorded} at {at}, as it was recorded");
                    return Err(Error::Router {
                        setting: "trace",
                        expected,
                        found: format!("token {found}"),
                    });
                }
                let pairs = &self.pairs[entry.begin..entry.end];
                let live = &mut scratch.values;
                if self.weights == ReplayWeights::Live {
                    let kept = pairs.iter().filter(|(_, kept)| *kept);
                    let logits = kept.map(|(pair, _)| input.logits[[t, usize::from(pair.expert)]]);
                    memory::refill_from(live, pairs.len(), logits, "logits of recorded experts")?;
                    numerics::softmax(live);
                }
                let mut next = live.iter();
                for (pair, kept) in pairs {
                    let expert = usize::from(pair.expert);
                    match (kept, self.weights) {
                        (false, _) => out.refuse(t, expert),
                        (true, ReplayWeights::Recorded) => out.assign(t, expert, pair.weight),
                        (true, ReplayWeights::Live) => {
                            out.assign(t, expert, next.next().copied().unwrap_or_default());
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

impl Replay {
    fn find(&self, key: [u64; 3]) -> Option<&Entry> {
        let [Ok(layer), Ok(sequence), Ok(position)] = key.map(u32::try_from) else { return None };
        let at = self.tokens.binary_search_by_key(&[layer, sequence, position], |entry| entry.key).ok()?;
        self.tokens.get(at)
    }
}
