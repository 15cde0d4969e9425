//! Where the bytes of a tensor of the model are.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use moe_kernels::{WeightFormat, WeightMatrix};

use super::{Checkpoint, RawFile, tensor_error};
use crate::layout::{ExpertStorage, RowOrder};
use crate::manifest::{ExpertMatrix, LayerPart, TensorKey, TensorSpec};
use crate::{Config, Error, Result};

/// Where a tensor of the model lies, so that it can be read from its file by whoever wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place<'a> {
    /// The file.
    pub path: &'a Path,
    /// The stored tensor that it is, or is part of.
    pub name: &'a str,
    /// Where in the file its bytes begin.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
    /// How its rows are stored.
    pub format: WeightFormat,
    /// Number of rows: outputs of a matrix; a vector is one row.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// The order of the rows within each head.
    pub order: RowOrder,
    /// Number of the file.
    file: usize,
    /// Where its bytes begin in the file's data.
    begin: usize,
}

impl Checkpoint {
    /// Where a tensor of a model of this config lies. Headers are all that is looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`], with the name that the layout has for it, if it is missing or has another shape or
    /// no type of weights.
    pub fn place(&self, spec: &TensorSpec, config: &Config) -> Result<Place<'_>> {
        let mut slot = self.layout.slot(spec.key, &spec.shape, config);
        // Of two tensors that share a matrix, some writers keep the one and some the other.
        if spec.key == TensorKey::Embedding
            && config.tie_embeddings
            && !self.by_name.contains_key(&*slot.name)
        {
            let head = self.layout.name(TensorKey::Head);
            if self.by_name.contains_key(&*head) {
                slot.name = head;
            }
        }
        self.refuse_transposed(spec, &slot.name, config)?;
        let stored = self.find(&slot.name, Some(&slot.shape))?;
        let file = &self.files[stored.file];
        let (rows, columns) = match spec.shape[..] {
            [rows, columns] => (rows, columns),
            _ => (1, spec.shape.iter().product()),
        };
        // The shape is as expected, so a row has a length and the part lies inside the whole.
        let found = stored.stored.format().and_then(|format| Some((format, format.row_bytes(columns)?)));
        let Some((format, row_bytes)) = found else {
            let found = format!("{} in rows of {columns}", stored.stored);
            return Err(tensor_error(file.path(), &stored.name, "a type of weights".to_owned(), found));
        };
        let begin = stored.begin + slot.first_row * row_bytes;
        Ok(Place {
            path: file.path(),
            name: &stored.name,
            offset: file.offset(begin),
            bytes: (rows * row_bytes) as u64,
            format,
            rows,
            columns,
            order: slot.order,
            file: stored.file,
            begin,
        })
    }

    /// Refuses w2 of concatenated experts where each is, or may be, transposed: `[E · H, D]`, as in the files of December 2023.
    fn refuse_transposed(&self, spec: &TensorSpec, name: &str, config: &Config) -> Result<()> {
        let TensorKey::Layer { layer, part: LayerPart::Expert { matrix: ExpertMatrix::W2, .. } } = spec.key
        else {
            return Ok(());
        };
        if self.layout.experts() != ExpertStorage::Concatenated {
            return Ok(());
        }
        let transposed =
            [config.experts.of(layer).saturating_mul(config.intermediate_size), config.hidden_size];
        match self.entry(name) {
            Some(entry) if entry.shape == transposed => {
                let expected = format!(
                    "w2 of each expert with rows of {}, which the conversion to the hub's layout gives them",
                    config.intermediate_size
                );
                let found =
                    format!("{transposed:?}: each transposed, as in the first files, or not to be told");
                Err(tensor_error(entry.path, name, expected, found))
            }
            _ => Ok(()),
        }
    }

    /// The bytes at a place of this checkpoint: a slice of the map, or read now.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if reading fails.
    pub fn read(&self, place: &Place<'_>) -> Result<Bytes> {
        self.files[place.file].bytes(place.begin, place.begin + place.bytes as usize)
    }

    /// The file of a place, for whoever reads it by itself, and whenever: the whole of it in memory or mapped, or one that is
    /// [read past the page cache](super::Access::Uncached).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a checkpoint that is [read](super::Access::Read) otherwise.
    pub(crate) fn raw(&self, place: &Place<'_>) -> Result<RawFile> {
        self.files[place.file].raw().ok_or_else(|| Error::Setting {
            setting: "access",
            expected: "uncached, or mapped weights".to_owned(),
            found: "weights that are read".to_owned(),
        })
    }

    /// The bytes of some of the rows at a place of this checkpoint, counted from 0 in the order that is stored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if reading fails.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    #[track_caller]
    pub fn read_rows(&self, place: &Place<'_>, rows: Range<usize>) -> Result<Bytes> {
        assert!(rows.start <= rows.end && rows.end <= place.rows, "rows {rows:?} of {}", place.rows);
        let row_bytes = place.bytes as usize / place.rows.max(1);
        let (begin, end) = (place.begin + rows.start * row_bytes, place.begin + rows.end * row_bytes);
        self.files[place.file].bytes(begin, end)
    }

    /// The matrix at a place of this checkpoint, its rows in the order that is stored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if reading fails.
    pub fn matrix(&self, place: &Place<'_>) -> Result<WeightMatrix> {
        Ok(WeightMatrix::new(self.read(place)?, place.format, place.rows, place.columns)?)
    }
}
