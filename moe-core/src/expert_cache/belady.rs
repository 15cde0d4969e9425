//! The best that a cache could do if it knew what comes.

use std::cmp::Reverse;

use crate::memory::{refill, reserve};
use crate::{Error, Result};

use super::heaps::Heaps;
use super::{Answer, CacheReport, ExpertKey, ExpertSizes, LayerAccess};

/// Runs a trace through a cache that knows all of it, starting with `initial` residents.
///
/// For a miss, what is resident and used again farthest in the future makes room (L. A. Belady, *A study of replacement algorithms
/// for a virtual-storage computer*, IBM Systems Journal 5, 1966); ties go to the lower key, which changes no number. It may
/// **bypass**: an expert whose own next use is farther than those of all residents is streamed, not kept, just as a cache streams
/// what finds no room. Nothing is pinned.
///
/// For experts of [one size](ExpertSizes::are_equal) this is a true bound: no policy that starts with the same residents has more hits
/// on the trace, whatever it knows, unless it reads ahead. For sizes that differ the optimum is NP-hard, and this is a
/// heuristic that a policy may beat: what is used farthest goes first, whatever its size, if enough bytes are used later than the
/// expert at hand.
///
/// O(n log n) for n requests, and about 12 bytes of memory for each.
///
/// # Errors
///
/// [`Error::Residency`] for a layer or expert that the sizes do not have, and initial residents twice or beyond the budget;
/// [`Error::TooLarge`] for 2³² requests or more; [`Error::OutOfMemory`].
pub fn belady<'a>(
    sizes: &ExpertSizes,
    budget: u64,
    initial: impl IntoIterator<Item = ExpertKey>,
    trace: impl IntoIterator<Item = LayerAccess<'a>>,
) -> Result<CacheReport> {
    let mut report = CacheReport::new(sizes.layers())?;
    let keys = requests(sizes, trace, &mut report.steps)?;
    let mut cache = Clairvoyant {
        sizes,
        free: budget,
        resident: Heaps::new(1, sizes.keys())?,
        next: Vec::new(),
        set_aside: Vec::new(),
    };
    // From the last request to the first, the next use of each key is the one seen before; what remains are the first uses.
    refill(&mut cache.next, sizes.keys(), NEVER, WHAT)?;
    let mut after = Vec::new();
    refill(&mut after, keys.len(), NEVER, WHAT)?;
    for (i, &key) in keys.iter().enumerate().rev() {
        after[i] = std::mem::replace(&mut cache.next[key as usize], i as u32);
    }
    for key in initial {
        let index = sizes.checked_index(key)? as u32;
        if cache.resident.contains(index) || sizes.at(index as usize) > cache.free {
            let found = format!("layer {}, expert {}", key.layer, key.expert);
            return Err(Error::residency("initial residents", "distinct experts within the budget", found));
        }
        cache.keep(index);
    }
    for (&key, &after) in keys.iter().zip(&after) {
        let (answer, evicted) = cache.request(key, after)?;
        let ExpertKey { layer, .. } = sizes.key(key as usize);
        report.count(layer, sizes.at(key as usize), answer, evicted);
    }
    Ok(report)
}

const WHAT: &str = "requests of a trace";
const NEVER: u32 = u32::MAX;

/// The keys of a trace in order, and its number of steps.
fn requests<'a>(
    sizes: &ExpertSizes,
    trace: impl IntoIterator<Item = LayerAccess<'a>>,
    steps: &mut u64,
) -> Result<Vec<u32>> {
    let (mut keys, mut step) = (Vec::new(), None);
    for access in trace {
        *steps += u64::from(step.replace(access.step) != Some(access.step));
        reserve(&mut keys, access.experts.len(), WHAT)?;
        for &expert in access.experts {
            keys.push(sizes.checked_index(ExpertKey::new(access.layer, expert as usize))? as u32);
        }
    }
    match u32::try_from(keys.len()) {
        Ok(n) if n < NEVER => Ok(keys),
        _ => Err(Error::TooLarge { what: WHAT, found: keys.len() }),
    }
}

struct Clairvoyant<'a> {
    sizes: &'a ExpertSizes,
    free: u64,
    /// What is resident, the farthest next use first.
    resident: Heaps,
    /// The request that uses each key next.
    next: Vec<u32>,
    /// What would make room, while it is not known whether it is enough.
    set_aside: Vec<u32>,
}

impl Clairvoyant<'_> {
    fn request(&mut self, key: u32, after: u32) -> Result<(Answer, usize)> {
        let hit = self.resident.contains(key);
        if hit {
            self.resident.remove(key, farther(&self.next));
        }
        self.next[key as usize] = after;
        if hit {
            self.resident.push(key, farther(&self.next));
            return Ok((Answer::Hit, 0));
        }
        let bytes = self.sizes.at(key as usize);
        self.set_aside.clear();
        while bytes > self.free {
            let first = self.resident.first(0).filter(|&first| self.next[first as usize] > after);
            let Some(first) = first else { break };
            reserve(&mut self.set_aside, 1, WHAT)?;
            self.set_aside.push(first);
            self.resident.remove(first, farther(&self.next));
            self.free += self.sizes.at(first as usize);
        }
        if bytes > self.free {
            while let Some(key) = self.set_aside.pop() {
                self.keep(key);
            }
            return Ok((Answer::Stream, 0));
        }
        self.keep(key);
        Ok((Answer::Load, self.set_aside.len()))
    }

    fn keep(&mut self, key: u32) {
        self.free -= self.sizes.at(key as usize);
        self.resident.push(key, farther(&self.next));
    }
}

/// Whether a key is evicted before another.
fn farther(next: &[u32]) -> impl Fn(u32, u32) -> bool + '_ {
    |a, b| (Reverse(next[a as usize]), a) < (Reverse(next[b as usize]), b)
}
