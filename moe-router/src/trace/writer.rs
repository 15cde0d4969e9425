//! Recording.

use std::io::Write;

use moe_core::{BoxError, Observer, Result as CoreResult, Routed, RoutingPlan, TokenContext};

use super::record::{CHECKED, Kind, NO_EXPERT, NO_ID, Pair, Phase, Record};
use super::{TraceError, TraceHeader};

/// Writes a trace: an [observer](Observer) of layers, told of each in the order of its model, pass after pass. It keeps nothing of what it
/// has written.
///
/// [`finish`](Self::finish) ends the trace; without that it is refused by readers.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    experts: Vec<u16>,
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
    /// [`TraceError::Io`]; [`TraceError::Unfit`] where a number is beyond what a record holds, or the layer is not one of the header's.
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
