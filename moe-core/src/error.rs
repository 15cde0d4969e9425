//! What can go wrong in a layer.

use crate::OutOfMemory;

/// An error of somebody else's gate, router or bank of experts.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The place in a layer where a value was found not to be finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// What the gate computed.
    RouterLogits,
    /// What the layer gave back.
    LayerOutput,
}

impl Stage {
    /// Its name in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::RouterLogits => "router logits",
            Self::LayerOutput => "mixture-of-experts output",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An error of a mixture-of-experts layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array has another shape than its neighbours imply.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape implied.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A per-token list of the context has another length than there are tokens.
    #[error("{what}: expected {expected} entries, found {found}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// Sequence offsets do not run from 0 to the number of tokens without a step back.
    #[error("sequence offsets: expected an ascending list from 0 to {tokens}, found {found:?}")]
    Sequences {
        /// Number of tokens.
        tokens: usize,
        /// The offsets.
        found: Vec<usize>,
    },
    /// A dispatch's lists do not fit together.
    #[error("dispatch, {what}: expected {expected}, found {found}")]
    Dispatch {
        /// Which list.
        what: &'static str,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A router assigned a token that the batch does not have.
    #[error("router: expected a token below {tokens}, found {token}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// A router assigned an expert that the layer does not have.
    #[error("router: token {token}: expected an expert below {experts}, found {expert}")]
    ExpertOutOfRange {
        /// The token.
        token: u32,
        /// The expert.
        expert: u32,
        /// Number of experts.
        experts: usize,
    },
    /// A router gave a token the same expert twice.
    #[error("router: token {token}: expected distinct experts, found expert {expert} twice")]
    DuplicateAssignment {
        /// The token.
        token: u32,
        /// The expert.
        expert: u32,
    },
    /// A router gave a combination weight that is not finite.
    #[error("router: token {token}, expert {expert}: expected a finite weight, found {weight}")]
    WeightNotFinite {
        /// The token.
        token: u32,
        /// The expert.
        expert: u32,
        /// The weight.
        weight: f32,
    },
    /// A router cannot work on this input: too few experts, say, or token ids missing.
    #[error("router: {setting}: expected {expected}, found {found}")]
    Router {
        /// The setting or input at fault.
        setting: &'static str,
        /// What would work.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The router of one sequence of several cannot work on it.
    #[error("sequence {sequence}: {source}")]
    Sequence {
        /// Its place in the batch.
        sequence: usize,
        /// What the router says.
        source: Box<Error>,
    },
    /// A setting of a gate that means nothing.
    #[error("gate: {setting}: expected {expected}, found {found}")]
    Gate {
        /// The setting.
        setting: &'static str,
        /// What would work.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A [cache](crate::expert_cache) or a [placement](crate::placement) of experts was given what does not fit it.
    #[error("{what}: expected {expected}, found {found}")]
    Residency {
        /// The cache or placement, and the place in it.
        what: String,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A layer computed NaN or an infinity.
    #[error("layer {layer}, {stage}: token {token}: expected finite values, found {value}")]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// Place in the layer.
        stage: Stage,
        /// Row of the batch.
        token: usize,
        /// The value.
        value: f32,
    },
    /// Memory for something whose size the input decides is not to be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A batch with more tokens or experts than 32-bit indices reach.
    #[error("{what}: expected less than 4294967295, found {found}")]
    TooLarge {
        /// Tokens or experts.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// Other passes have taken what this one needs, and it must not wait on its thread.
    #[error("{what}: taken by other passes, on a thread that must not wait for them")]
    Busy {
        /// Of what there is only so much.
        what: &'static str,
    },
    /// A gate, router or expert from outside failed.
    #[error("{what}: {source}")]
    Custom {
        /// Which slot of the layer.
        what: &'static str,
        /// Its own error.
        source: BoxError,
    },
}

impl Error {
    /// Wraps an error of a custom expert or bank.
    pub fn experts(source: impl Into<BoxError>) -> Self {
        Self::Custom { what: "experts", source: source.into() }
    }

    /// Wraps an error of a custom router.
    pub fn router(source: impl Into<BoxError>) -> Self {
        Self::Custom { what: "router", source: source.into() }
    }

    /// Wraps an error of a custom gate.
    pub fn gate(source: impl Into<BoxError>) -> Self {
        Self::Custom { what: "gate", source: source.into() }
    }

    /// Wraps an error of an observer.
    pub fn observer(source: impl Into<BoxError>) -> Self {
        Self::Custom { what: "observer", source: source.into() }
    }

    /// What does not fit a cache or a placement.
    pub(crate) fn residency(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Residency { what: what.into(), expected: expected.into(), found: found.to_string() }
    }

    /// `Ok` where an array has the expected shape.
    pub fn check_shape(what: &'static str, expected: &[usize], found: &[usize]) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Self::Shape { what, expected: expected.to_vec(), found: found.to_vec() })
    }
}
