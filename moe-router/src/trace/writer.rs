//! Recording.

use std::io::Write;

use moe_core::{BoxError, Observer, Result as CoreResult, Routed, RoutingPlan, TokenContext};

use super::record::{CHECKED, Kind, NO_EXPERT, NO_ID, Pair, Phase, Record};
use super::{TokenRoute, TraceError, TraceHeader, TraceWeights};

/// Writes a trace: an [observer](Observer) of layers, told of each in the order of its model, pass after pass. It keeps nothing of what it
/// has written.
///
/// [`finish`](Self::finish) ends the trace; without that it is refused by readers.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    experts: Vec<u16>,
    weights: TraceWeights,
    /// Of the pass at hand.
    step: u32,
    /// The layer that was told of last.
    layer: Option<u16>,
    /// Of the bytes since the last check.
    sum: crc32fast::Hasher,
    unchecked: u32,
    total: u64,
    /// Refused pairs by token: places in the plan's list.
    refused: Vec<u32>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`]; [`TraceError::Unfit`] for more than 65,535 layers or 2²⁰ experts, or texts of a megabyte.
    pub fn new(mut out: W, header: &TraceHeader) -> Result<Self, TraceError> {
        let bytes = header.to_bytes()?;
        out.write_all(&bytes)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes);
        Ok(Self {
            out,
            experts: header.experts.clone(),
            weights: header.weights,
            step: 0,
            layer: None,
            sum,
            unchecked: 0,
            total: 0,
            refused: Vec::new(),
        })
    }

    /// Records the routing of a layer: a new pass begins with every layer that does not come after the one before it.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`]; [`TraceError::Unfit`] where a number is beyond what a record holds, the layer is not one of the header's, or a pair
    /// has a weight and the header says that there are none.
    pub fn record(
        &mut self,
        layer: usize,
        plan: &RoutingPlan,
        context: &TokenContext<'_>,
    ) -> Result<(), TraceError> {
        let number = u16::try_from(layer).ok().filter(|&n| self.experts.get(usize::from(n)).is_some());
        let number = number
            .ok_or_else(|| TraceError::unfit("layer", format!("less than {}", self.experts.len()), layer))?;
        let experts = usize::from(self.experts[layer]);
        if plan.experts() != experts {
            return Err(TraceError::unfit("experts of a layer", experts.to_string(), plan.experts()));
        }
        if self.layer.is_some_and(|before| number <= before) {
            self.step = self
                .step
                .checked_add(1)
                .ok_or_else(|| TraceError::unfit("steps", "less than 2^32", "more"))?;
        }
        self.layer = Some(number);
        self.sort_refused(plan)?;
        let mut refused = 0;
        for s in 0..context.sequences() {
            let rows = context.sequence(s, plan.tokens());
            let phase = if rows.len() == 1 { Phase::Decode } else { Phase::Prefill };
            for t in rows {
                if context.is_padding(t) {
                    continue;
                }
                refused = self.token(number, t, phase, plan, context, refused)?;
            }
        }
        Ok(())
    }

    /// Records a token's route in a layer as it is: what a reader gave, or a program that routes by itself. Its `offset` is of no account.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`]; [`TraceError::Unfit`] for what a reader would refuse, of which nothing is written then: a pass or a layer that comes before the one
    /// before it, a layer or an expert that is not one of the header's, ranks that do not ascend, an expert kept twice, a weight that is not
    /// finite, or not 0 where the pair was refused or the header says that there are none, and the token id 2³² - 1.
    pub fn write(&mut self, route: &TokenRoute) -> Result<(), TraceError> {
        self.check_route(route)?;
        let TokenRoute { step, layer, sequence, position, phase, .. } = *route;
        (self.step, self.layer) = (step, Some(layer));
        let place = Record {
            step,
            sequence,
            position,
            token: route.token.unwrap_or(NO_ID),
            layer,
            pair: Pair { expert: NO_EXPERT, requested: NO_EXPERT, rank: 0, weight: 0.0 },
            kind: Kind::Nothing,
            phase,
            first: true,
        };
        let kept = route.kept.iter().map(|&pair| (pair, Kind::Kept));
        let pairs = kept.chain(route.refused.iter().map(|&pair| (pair, Kind::Refused)));
        let mut first = true;
        for (pair, kind) in pairs {
            self.push(Record { pair, kind, first, ..place })?;
            first = false;
        }
        if first { self.push(place) } else { Ok(()) }
    }

    /// Whether a reader would take a route.
    fn check_route(&self, route: &TokenRoute) -> Result<(), TraceError> {
        let TokenRoute { step, layer, .. } = *route;
        let Some(&experts) = self.experts.get(usize::from(layer)) else {
            return Err(TraceError::unfit("layer", format!("less than {}", self.experts.len()), layer));
        };
        if let Some(before) = self.layer
            && (step, layer) < (self.step, before)
        {
            let expected = format!("pass {}, layer {before}, or a later one", self.step);
            return Err(TraceError::unfit("order", expected, format!("pass {step}, layer {layer}")));
        }
        if route.token == Some(NO_ID) {
            return Err(TraceError::unfit("token id", format!("less than {NO_ID}"), NO_ID));
        }
        for (pairs, kept) in [(&route.kept, true), (&route.refused, false)] {
            for (n, pair) in pairs.iter().enumerate() {
                let Pair { expert, requested, rank, weight } = *pair;
                if let Some(most) = [expert, requested, rank].into_iter().find(|&number| number >= experts) {
                    return Err(TraceError::unfit("expert or rank", format!("less than {experts}"), most));
                }
                if n > 0 && pairs[n - 1].rank >= rank {
                    return Err(TraceError::unfit("ranks", format!("more than {}", pairs[n - 1].rank), rank));
                }
                if kept && pairs[..n].iter().any(|before| before.expert == expert) {
                    return Err(TraceError::unfit(
                        "experts of a token",
                        "each once",
                        format!("{expert} twice"),
                    ));
                }
                if !kept && weight.to_bits() != 0 {
                    return Err(TraceError::unfit("weight of a refused pair", "0", weight));
                }
                self.check_weight(weight)?;
            }
        }
        Ok(())
    }

    fn check_weight(&self, weight: f32) -> Result<(), TraceError> {
        if self.weights == TraceWeights::None && weight.to_bits() != 0 {
            return Err(TraceError::unfit("weight of a trace without weights", "0", weight));
        }
        match weight.is_finite() {
            true => Ok(()),
            false => Err(TraceError::unfit("weight", "a finite one", weight)),
        }
    }

    /// Records a token, whose refused pairs begin at a place in the sorted list; gives the place of the next one's.
    fn token(
        &mut self,
        layer: u16,
        t: usize,
        phase: Phase,
        plan: &RoutingPlan,
        context: &TokenContext<'_>,
        mut refused: usize,
    ) -> Result<usize, TraceError> {
        let [_, sequence, position] = context.place(t);
        let narrow = |what, value: u64| {
            u32::try_from(value).map_err(|_| TraceError::unfit(what, "less than 2^32", value))
        };
        let place = Record {
            step: self.step,
            sequence: narrow("sequence", sequence)?,
            position: narrow("position", position)?,
            token: context.token_ids.and_then(|ids| ids.get(t)).copied().unwrap_or(NO_ID),
            layer,
            pair: Pair { expert: NO_EXPERT, requested: NO_EXPERT, rank: 0, weight: 0.0 },
            kind: Kind::Nothing,
            phase,
            first: true,
        };
        // Experts and ranks are below the layer's number of experts, which fits.
        let half = |value: usize| value as u16;
        let mut first = true;
        for choice in plan.choices(t) {
            let requested = half(choice.instead_of.unwrap_or(choice.expert));
            let pair = Pair {
                expert: half(choice.expert),
                requested,
                rank: half(choice.rank),
                weight: choice.weight,
            };
            self.push(Record { pair, kind: Kind::Kept, first, ..place })?;
            first = false;
        }
        while let Some(refusal) = self.refused.get(refused).map(|&at| plan.refused()[at as usize]) {
            if refusal.token as usize > t {
                break;
            }
            refused += 1;
            if (refusal.token as usize) < t {
                // Of padding, which is not recorded.
                continue;
            }
            let expert = half(refusal.expert as usize);
            let pair = Pair { expert, requested: expert, rank: half(refusal.rank as usize), weight: 0.0 };
            self.push(Record { pair, kind: Kind::Refused, first, ..place })?;
            first = false;
        }
        if first {
            self.push(place)?;
        }
        Ok(refused)
    }

    /// Sorts refused pairs by token and rank.
    fn sort_refused(&mut self, plan: &RoutingPlan) -> Result<(), TraceError> {
        let refused = plan.refused();
        moe_core::memory::refill_from(
            &mut self.refused,
            refused.len(),
            0..refused.len() as u32,
            "refused pairs",
        )?;
        self.refused.sort_unstable_by_key(|&at| {
            let refusal = refused[at as usize];
            (refusal.token, refusal.rank, at)
        });
        Ok(())
    }

    fn push(&mut self, record: Record) -> Result<(), TraceError> {
        let experts = self.experts[usize::from(record.layer)];
        if record.kind != Kind::Nothing && record.pair.rank >= experts {
            return Err(TraceError::unfit("choices of a token", format!("at most {experts}"), "more"));
        }
        self.check_weight(record.pair.weight)?;
        let bytes = record.to_bytes();
        self.out.write_all(&bytes)?;
        self.sum.update(&bytes);
        self.unchecked += 1;
        self.total += 1;
        if self.unchecked as usize == CHECKED { self.check(false) } else { Ok(()) }
    }

    fn check(&mut self, is_last: bool) -> Result<(), TraceError> {
        let sum = std::mem::take(&mut self.sum).finalize();
        let check = Record::check(std::mem::take(&mut self.unchecked), sum, self.total, is_last);
        Ok(self.out.write_all(&check.to_bytes())?)
    }

    /// Ends the trace, and gives back what it was written to.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`].
    pub fn finish(mut self) -> Result<W, TraceError> {
        self.check(true)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Records written so far.
    pub fn records(&self) -> u64 {
        self.total
    }
}

impl<W: Write> Observer for TraceWriter<W> {
    fn routed(&mut self, routed: &Routed<'_>) -> CoreResult<()> {
        let recorded = self.record(routed.layer, routed.plan, &routed.context);
        recorded.map_err(|error| moe_core::Error::observer(BoxError::from(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Replay, ReplayWeights, TraceReader};
    use super::*;

    fn pair(expert: u16, rank: u16, weight: f32) -> Pair {
        Pair { expert, requested: expert, rank, weight }
    }

    fn route(step: u32, layer: u16, kept: &[Pair], refused: &[Pair]) -> TokenRoute {
        let (kept, refused) = (kept.to_vec(), refused.to_vec());
        TokenRoute { step, layer, position: step, token: Some(7), kept, refused, ..TokenRoute::default() }
    }

    fn read(bytes: &[u8]) -> Vec<TokenRoute> {
        let (mut reader, mut all) = (TraceReader::new(bytes).unwrap(), vec![]);
        let mut next = TokenRoute::default();
        while reader.next(&mut next).unwrap() {
            all.push(TokenRoute { offset: 0, ..next.clone() });
        }
        all
    }

    #[test]
    fn a_route_is_written_as_it_is() {
        let moved = Pair { expert: 3, requested: 1, rank: 2, weight: -0.5 };
        let routes = [
            route(4, 0, &[pair(0, 0, 0.25), moved], &[pair(2, 1, 0.0), pair(2, 3, 0.0)]),
            route(4, 0, &[], &[]),
            route(4, 1, &[], &[pair(1, 0, 0.0)]),
            route(9, 0, &[pair(3, 0, 1.0)], &[]),
        ];
        let mut writer = TraceWriter::new(vec![], &TraceHeader::new([4, 2])).unwrap();
        for route in &routes {
            writer.write(route).unwrap();
        }
        assert_eq!(read(&writer.finish().unwrap()), routes);
    }

    #[test]
    fn what_a_reader_would_refuse_is_not_written() {
        let id = TokenRoute { token: Some(NO_ID), ..route(1, 1, &[], &[]) };
        let unfit = [
            (route(0, 1, &[], &[]), "order: expected pass 1, layer 1, or a later one, found pass 0, layer 1"),
            (route(1, 0, &[], &[]), "order: expected pass 1, layer 1, or a later one, found pass 1, layer 0"),
            (route(1, 2, &[], &[]), "layer: expected less than 2, found 2"),
            (route(1, 1, &[pair(4, 0, 1.0)], &[]), "expert or rank: expected less than 4, found 4"),
            (route(1, 1, &[pair(0, 1, 1.0), pair(1, 1, 1.0)], &[]), "ranks: expected more than 1, found 1"),
            (
                route(1, 1, &[pair(0, 0, 1.0), pair(0, 1, 1.0)], &[]),
                "experts of a token: expected each once, found 0 twice",
            ),
            (route(1, 1, &[pair(0, 0, f32::NAN)], &[]), "weight: expected a finite one, found NaN"),
            (route(1, 1, &[], &[pair(0, 0, 0.5)]), "weight of a refused pair: expected 0, found 0.5"),
            (id, "token id: expected less than 4294967295, found 4294967295"),
        ];
        let mut writer = TraceWriter::new(vec![], &TraceHeader::new([4, 4])).unwrap();
        let sound = route(1, 1, &[pair(0, 0, 1.0)], &[]);
        writer.write(&sound).unwrap();
        for (route, expected) in unfit {
            assert_eq!(writer.write(&route).unwrap_err().to_string(), expected);
        }
        assert_eq!(read(&writer.finish().unwrap()), [sound]);
    }

    #[test]
    fn a_trace_without_weights_is_replayed_with_those_at_hand() {
        let header = TraceHeader { weights: TraceWeights::None, ..TraceHeader::new([4]) };
        let mut writer = TraceWriter::new(vec![], &header).unwrap();
        writer.write(&route(0, 0, &[pair(1, 0, 0.0)], &[])).unwrap();
        let error = writer.write(&route(0, 0, &[pair(1, 0, 0.5)], &[])).unwrap_err();
        assert_eq!(error.to_string(), "weight of a trace without weights: expected 0, found 0.5");
        let bytes = writer.finish().unwrap();
        assert_eq!(TraceReader::new(&bytes[..]).unwrap().header(), &header);
        assert!(Replay::read(&bytes[..], ReplayWeights::Live).is_ok());
        let error = Replay::read(&bytes[..], ReplayWeights::Recorded).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weights to replay: expected those of the logits at hand, found weights=none"
        );
    }
}
