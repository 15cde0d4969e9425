//! The kinds of products.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// What a product does to its activations, the rows of x, where the weight's format has such products: other matrices are
/// multiplied exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// Nothing: exact f32, with weights of any type ([`moe_core::numerics::dot`]).
    #[default]
    F32,
    /// They are rounded to bfloat16 first ([`moe_core::numerics::dot_bf16`]), which processors with instructions for that
    /// multiply at up to twice the speed. Weights must be bfloat16, each zero or at least
    /// [`BF16_LEAST`](moe_core::numerics::BF16_LEAST) in magnitude.
    Bf16,
    /// They are rounded to int8 block by block ([`moe_core::numerics::quantise_int8`]), and products of integers are added up
    /// ([`moe_core::numerics::add_int8_block`]). Weights must be blocks of integers ([`BlockType::has_int8`](crate::BlockType::has_int8)).
    Int8,
}

impl Activations {
    /// The names of all kinds.
    pub const NAMES: [&'static str; 3] = ["f32", "bf16", "int8"];

    /// Its name, one of [`NAMES`](Self::NAMES).
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activations {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::F32, Self::Bf16, Self::Int8].into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            Error::UnknownActivations { known: Self::NAMES.join(", "), found: name.to_owned() }
        })
    }
}
