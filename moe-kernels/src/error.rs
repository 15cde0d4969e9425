//! What can go wrong in making a kernel's operands.

use moe_core::{Error as CoreError, OutOfMemory};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix's bytes do not have the length that its shape and type imply.
    #[error("{rows} x {columns} {format} matrix: expected {expected} bytes, found {found}")]
    Bytes {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// How its rows are stored.
        format: crate::WeightFormat,
        /// Bytes implied; as text, since it may be beyond any integer.
        expected: String,
        /// Bytes given.
        found: usize,
    },
    /// A matrix has another shape than its neighbours imply.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which matrix.
        what: String,
        /// The shape implied.
        expected: [usize; 2],
        /// The shape it has.
        found: [usize; 2],
    },
    /// A format of weights that does not exist.
    #[error("weights: expected one of {known}, found {found:?}")]
    UnknownFormat {
        /// The names there are.
        known: String,
        /// The name given.
        found: String,
    },
    /// A kind of activations that does not exist.
    #[error("activations: expected one of {known}, found {found:?}")]
    UnknownActivations {
        /// The names there are.
        known: String,
        /// The name given.
        found: String,
    },
    /// A matrix is stored in another way than a bank was made for.
    #[error("expected {expected} weights, found {found}")]
    Format {
        /// How the bank was told that rows are stored.
        expected: crate::WeightFormat,
        /// How they are.
        found: crate::WeightFormat,
    },
    /// A weight too small for products with bfloat16 activations.
    #[error(
        "row {row}, column {column}: expected a weight of zero or at least 2^-56 in magnitude for bf16 activations, found {value:e}"
    )]
    TooSmall {
        /// The weight's row.
        row: usize,
        /// Its column.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// An activation that is to be rounded to int8 is NaN or infinite.
    #[error("row {row} of the input: expected finite activations to round to int8")]
    InputNotFinite {
        /// The first such row.
        row: usize,
    },
    /// A matrix of an expert.
    #[error("expert {expert} {matrix}: {source}")]
    Expert {
        /// Number of the expert.
        expert: usize,
        /// Name of the matrix.
        matrix: &'static str,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// Memory for something whose size the input decides is not to be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A bank of no experts.
    #[error("bank of experts: expected at least one, found none")]
    NoExperts,
    /// A backend that does not exist.
    #[error("backend: expected one of {known}, found {found:?}")]
    UnknownBackend {
        /// The names there are.
        known: String,
        /// The name given.
        found: String,
    },
    /// A backend that this processor cannot run.
    #[error("backend {name}: expected {needs}, which this processor lacks")]
    MissingFeatures {
        /// The backend.
        name: &'static str,
        /// Instruction sets it needs.
        needs: &'static str,
    },
    /// A block type that does not exist.
    #[error("block type: expected one of {known}, found {found:?}")]
    UnknownBlockType {
        /// The names there are.
        known: String,
        /// The name given.
        found: String,
    },
    /// A row of blocks that would end within one.
    #[error("{block} row: expected a multiple of {elements} columns, found {columns}")]
    PartialBlock {
        /// How the row is stored.
        block: crate::BlockType,
        /// Elements of a block.
        elements: usize,
        /// Columns given.
        columns: usize,
    },
    /// A row's bytes do not have the length that its columns and type imply.
    #[error("{block} row of {columns} columns: expected {expected} bytes, found {found}")]
    RowBytes {
        /// How the row is stored.
        block: crate::BlockType,
        /// Columns.
        columns: usize,
        /// Bytes implied.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A block type that weights are not rounded to.
    #[error("{block}: expected a type that weights can be rounded to, one of {known}")]
    NotMade {
        /// The type.
        block: crate::BlockType,
        /// The types that can be made.
        known: String,
    },
    /// A row has another number of importances than of elements.
    #[error("importances: expected {expected}, one an element, found {found}")]
    Importances {
        /// Elements.
        expected: usize,
        /// Importances.
        found: usize,
    },
    /// A number that weights cannot be rounded with.
    #[error(
        "{what} of column {column}: expected a finite number, an importance not below zero, found {value}"
    )]
    NotFinite {
        /// `element` or `importance`.
        what: &'static str,
        /// Which.
        column: usize,
        /// Its value.
        value: f32,
    },
}

impl Error {
    /// The same as an error of a layer: `wrap` says which part of it failed, where the error is not one of the layer's own.
    pub fn in_layer(self, wrap: impl FnOnce(Self) -> CoreError) -> CoreError {
        match self {
            Self::OutOfMemory(error) => error.into(),
            other => wrap(other),
        }
    }

    /// What is wrong with a matrix of an expert.
    pub(crate) fn of_expert(expert: usize, matrix: &'static str, source: Self) -> Self {
        Self::Expert { expert, matrix, source: Box::new(source) }
    }
}
