//! What can go wrong in making a kernel's operands.

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
}
