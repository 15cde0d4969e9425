//! What a router writes: pairs of token and expert, in any order, not yet trusted.

use crate::memory::{held, refill, reserve};
use crate::{Error, OutOfMemory, Result, Scratch};

/// One pair that a router granted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Row of the batch.
    pub token: u32,
    /// The expert that works on it.
    pub expert: u32,
    /// What its output is multiplied by.
    pub weight: f32,
    /// How many of the token's choices came before this one.
    pub rank: u32,
    /// The expert that the router asked for. It differs from `expert` where a decorator sent the token elsewhere.
    pub requested: u32,
}

/// One pair that a router wanted and a capacity turned away, or a [mask](crate::RouteInput::is_masked).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Row of the batch.
    pub token: u32,
    /// The expert asked for, which was full or masked.
    pub expert: u32,
    /// How many of the token's choices came before this one.
    pub rank: u32,
}

/// A place in the list of granted pairs; see [`Assignments::review`].
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// What becomes of a reviewed pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It stays granted.
    #[default]
    Keep,
    /// It is turned away, and becomes a [`Refusal`].
    Refuse,
    /// It was never asked for (padding, say): neither granted nor refused.
    Forget,
}

/// What a decorating router sees of the pairs that the inner one has just granted.
///
/// Everything is scratch of the [`Assignments`], so that a decorator needs no buffer of its own.
#[derive(Debug)]
pub struct Review<'a> {
    /// The pairs, in the order they were pushed. Their tokens are counted as in the router's input. Weights may be changed, and
    /// so may experts: a pair sent elsewhere stays one request, for the expert it [requested](Assignment::requested).
    pub pairs: &'a mut [Assignment],
    /// What becomes of pair i.
    pub verdicts: &'a mut [Verdict],
    /// 0, 1, 2, … over the pairs: to be sorted by priority.
    pub order: &'a mut [u32],
    /// A zero for each expert: to count its load.
    pub load: &'a mut [u32],
    /// A zero for each pair: to hold a priority.
    pub priority: &'a mut [f32],
}

/// Memory that routers reuse from call to call; see [`Assignments::with_scratch`]. Contents are unspecified.
#[derive(Debug, Default)]
pub struct RouteScratch {
    /// For scores, probabilities, weights.
    pub values: Vec<f32>,
    /// For whatever is sorted or selected.
    pub keys: Vec<u64>,
    /// For a router's own types.
    pub own: Scratch,
}

impl RouteScratch {
    fn bytes(&self) -> usize {
        held(&self.values) + held(&self.keys) + self.own.bytes()
    }
}

/// A push-only, ragged list of pairs. Sealing it makes a [`RoutingPlan`](crate::RoutingPlan).
///
/// Reusing one list over calls allocates nothing once it has grown.
#[derive(Debug, Default)]
pub struct Assignments {
    tokens: usize,
    experts: usize,
    first_token: usize,
    granted: Vec<Assignment>,
    refused: Vec<Refusal>,
    /// Bytes that a pair would have taken and were not to be had; 0 if all are here. Sealing reports it.
    lost: usize,
    /// Choices pushed so far, for each token.
    pushed: Vec<u32>,
    verdicts: Vec<Verdict>,
    order: Vec<u32>,
    load: Vec<u32>,
    priority: Vec<f32>,
    /// Memory to lend, the outermost borrower's last.
    scratch: Vec<RouteScratch>,
}

impl Assignments {
    /// An empty list for no tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything and makes ready for a batch of `tokens` over `experts`.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] where 32-bit indices do not reach; [`Error::OutOfMemory`].
    pub fn reset(&mut self, tokens: usize, experts: usize) -> Result<()> {
        for (what, found) in [("tokens", tokens), ("experts", experts)] {
            if u32::try_from(found).is_err() || found == u32::MAX as usize {
                return Err(Error::TooLarge { what, found });
            }
        }
        (self.tokens, self.experts, self.first_token) = (tokens, experts, 0);
        self.granted.clear();
        self.refused.clear();
        self.lost = 0;
        Ok(refill(&mut self.pushed, tokens, 0, "assignments")?)
    }

    /// Bytes of memory that it holds on to, what it lends to routers included.
    pub fn bytes(&self) -> usize {
        let Self { granted, refused, pushed, verdicts, order, load, priority, scratch, .. } = self;
        let lists = held(granted) + held(refused) + held(pushed);
        let review = held(verdicts) + held(order) + held(load) + held(priority);
        lists + review + held(scratch) + scratch.iter().map(RouteScratch::bytes).sum::<usize>()
    }

    /// Number of tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of experts of the layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Grants the pair: `expert` works on `token`, its output times `weight`.
    pub fn assign(&mut self, token: usize, expert: usize, weight: f32) {
        let (token, expert, rank) = self.next(token, expert);
        let pair = Assignment { token, expert, weight, rank, requested: expert };
        store(&mut self.granted, pair, &mut self.lost);
    }

    /// Records that the router wanted the pair and a capacity, or a mask, turned it away. It takes a rank like a granted one.
    pub fn refuse(&mut self, token: usize, expert: usize) {
        let (token, expert, rank) = self.next(token, expert);
        store(&mut self.refused, Refusal { token, expert, rank }, &mut self.lost);
    }

    /// The pairs granted so far, in the order they were pushed.
    pub fn granted(&self) -> &[Assignment] {
        &self.granted
    }

    /// The pairs refused so far.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// The end of the list of granted pairs as it is now.
    pub fn mark(&self) -> Mark {
        Mark(self.granted.len())
    }

    /// Lets a decorator look at the pairs granted since `mark`, change their weights, and turn some away.
    ///
    /// What is kept stays in the order it was pushed, and every pair keeps its rank.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], before anything is decided.
    pub fn review<T>(&mut self, mark: Mark, decide: impl FnOnce(Review<'_>) -> T) -> Result<T> {
        let from = mark.0.min(self.granted.len());
        let first_token = u32::try_from(self.first_token).unwrap_or(u32::MAX);
        let pairs = &mut self.granted[from..];
        refill(&mut self.verdicts, pairs.len(), Verdict::Keep, "verdicts")?;
        refill(&mut self.load, self.experts, 0, "load")?;
        refill(&mut self.priority, pairs.len(), 0.0, "priorities")?;
        refill(&mut self.order, 0, 0, "order")?;
        reserve(&mut self.order, pairs.len(), "order")?;
        // No pair can fail to be stored below: at most these are refused.
        reserve(&mut self.refused, pairs.len(), "refusals")?;
        // An out of range token stays one: both steps wrap.
        pairs.iter_mut().for_each(|p| p.token = p.token.wrapping_sub(first_token));
        self.order.extend(0..pairs.len() as u32);
        let result = decide(Review {
            pairs,
            verdicts: &mut self.verdicts,
            order: &mut self.order,
            load: &mut self.load,
            priority: &mut self.priority,
        });
        let mut kept = from;
        for (i, verdict) in self.verdicts.iter().enumerate() {
            let mut pair = self.granted[from + i];
            pair.token = pair.token.wrapping_add(first_token);
            match verdict {
                Verdict::Keep => {
                    self.granted[kept] = pair;
                    kept += 1;
                }
                Verdict::Refuse => {
                    self.refused.push(Refusal { token: pair.token, expert: pair.requested, rank: pair.rank });
                }
                Verdict::Forget => {}
            }
        }
        self.granted.truncate(kept);
        Ok(result)
    }

    /// `Ok` where every pair that was pushed is stored.
    pub(crate) fn check_stored(&self) -> Result<()> {
        if self.lost > 0 {
            return Err(OutOfMemory { what: "assignments", bytes: self.lost }.into());
        }
        Ok(())
    }

    /// Lends a router memory that outlives the call, so that it allocates nothing once grown.
    ///
    /// The loan ends with the closure. A router that runs another one inside it keeps its own; the inner one is lent other
    /// memory, the same at each depth from call to call.
    pub fn with_scratch<T>(&mut self, work: impl FnOnce(&mut Self, &mut RouteScratch) -> T) -> T {
        let mut scratch = self.scratch.pop().unwrap_or_default();
        let result = work(self, &mut scratch);
        self.scratch.push(scratch);
        result
    }

    /// Runs `route` on a stretch of the batch: token 0 of what it pushes is `first` of the whole.
    pub fn with_first_token<T>(&mut self, first: usize, route: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.first_token;
        self.first_token = outer.saturating_add(first);
        let result = route(self);
        self.first_token = outer;
        result
    }

    /// Indices as stored, and the rank of the token's next choice. What is out of range is stored so, and sealing says so.
    fn next(&mut self, token: usize, expert: usize) -> (u32, u32, u32) {
        let token = token.saturating_add(self.first_token);
        let rank = match self.pushed.get_mut(token) {
            Some(count) => {
                *count += 1;
                *count - 1
            }
            None => 0,
        };
        let narrow = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
        (narrow(token), narrow(expert), rank)
    }
}

/// Adds an entry to a list, or notes the bytes that are not to be had.
fn store<T>(list: &mut Vec<T>, entry: T, lost: &mut usize) {
    if list.try_reserve(1).is_ok() {
        list.push(entry);
    } else {
        *lost = (list.len() + 1).saturating_mul(size_of::<T>());
    }
}
