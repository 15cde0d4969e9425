//! Policies as text.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::{Error, Result};

/// What a cache evicts first; see [the module](super#policies).
///
/// As text: `lru`, `lru-per-layer`, `lfu`, `lfu-per-layer:age=64`, `least-stale`. Without `:age=` it is 64 steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CachePolicy {
    /// The least recently used of all.
    Lru,
    /// The least recently used of the layer, the budget being shared out over the layers.
    LruPerLayer,
    /// The least often used of all; of equals, the least recently used.
    Lfu,
    /// The least often used of the layer; of equals, the least recently used. The budget is shared out over the layers.
    LfuPerLayer {
        /// All counts are halved, fractions being kept, before every step whose number, from 0, is a multiple of this other than 0.
        age: NonZeroU32,
    },
    /// What the current step has not used, layers in the order of their turns.
    LeastStale,
}

impl CachePolicy {
    /// How each policy is written.
    pub const FORMS: [&'static str; 5] =
        ["lru", "lru-per-layer", "lfu", "lfu-per-layer:age=STEPS", "least-stale"];

    /// The age of `lfu-per-layer` without one, in steps.
    pub const DEFAULT_AGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(63);

    /// Whether the budget is shared out over the layers.
    pub fn is_per_layer(self) -> bool {
        matches!(self, Self::LruPerLayer | Self::LfuPerLayer { .. })
    }

    /// Whether it counts uses.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Lfu | Self::LfuPerLayer { .. })
    }
}

impl fmt::Display for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lru => f.write_str("lru"),
            Self::LruPerLayer => f.write_str("lru-per-layer"),
            Self::Lfu => f.write_str("lfu"),
            Self::LfuPerLayer { age } => write!(f, "lfu-per-layer:age={age}"),
            Self::LeastStale => f.write_str("least-stale"),
        }
    }
}

impl FromStr for CachePolicy {
    type Err = Error;

    /// # Errors
    ///
    /// [`Error::Residency`], which lists [`FORMS`](CachePolicy::FORMS); or says what an age may be.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "lru" => Ok(Self::Lru),
            "lru-per-layer" => Ok(Self::LruPerLayer),
            "lfu" => Ok(Self::Lfu),
            "lfu-per-layer" => Ok(Self::LfuPerLayer { age: Self::DEFAULT_AGE }),
            "least-stale" => Ok(Self::LeastStale),
            _ => match text.strip_prefix("lfu-per-layer:age=") {
                Some(age) => age
                    .parse()
                    .map(|age| Self::LfuPerLayer { age })
                    .map_err(|_| Error::residency("lfu-per-layer, age", "1 to 4294967295 steps", age)),
                None => {
                    let expected = format!("one of {}", Self::FORMS.join(", "));
                    Err(Error::residency("expert cache policy", expected, text))
                }
            },
        }
    }
}
