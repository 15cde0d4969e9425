//! What was written, by part of the model.

use std::collections::BTreeMap;
use std::fmt;

use moe_kernels::WeightFormat;
use serde::Serialize;

use super::plan::Part;
use super::rows::Squares;
use super::selection::matrix;
use crate::manifest::Kind;

/// What a model was made into. [`Display`](fmt::Display) writes a table for people, `serde` for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// By part of the model and type, in the order of a forward pass.
    pub rows: Vec<SummaryRow>,
    /// Weights in all.
    pub weights: u64,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// Bits a weight, over all.
    pub bits_per_weight: f64,
    /// Bytes of what was written, all else included.
    pub file_bytes: u64,
    /// Tensors whose rows are no whole blocks of the type that was chosen.
    pub changed: Vec<Changed>,
}

/// The tensors of one part of the model that have one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SummaryRow {
    /// The part: `embedding`, `attention.q`, `experts.w2`, ...
    pub part: String,
    /// The type.
    pub format: String,
    /// How many of the model's tensors these are, a matrix of an expert being one.
    pub tensors: usize,
    /// Their weights.
    pub weights: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bits a weight.
    pub bits_per_weight: f64,
    /// The root of the mean square of the errors over that of the weights, of those tensors that were not of this type before;
    /// 0 where nothing was rounded.
    pub relative_error: f64,
}

/// A tensor of another type than was chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Changed {
    /// Its name.
    pub tensor: String,
    /// The width of its rows, which is the reason.
    pub columns: usize,
    /// The type chosen.
    pub wanted: String,
    /// The type that it has.
    pub got: String,
}

/// What is added up on the way.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<(usize, String, String), OfRow>);

#[derive(Debug, Default)]
struct OfRow {
    tensors: usize,
    weights: u64,
    bytes: u64,
    squares: Squares,
}

impl Tally {
    /// A tensor was written.
    pub(super) fn add(&mut self, part: &Part<'_>, format: WeightFormat, squares: Squares) {
        let kind = part.key.kind();
        let rank = Kind::ALL.iter().position(|other| *other == kind).unwrap_or(Kind::ALL.len());
        let name = match matrix(part.key) {
            Some(matrix) => format!("{}.{matrix}", kind.name()),
            None => kind.name().to_owned(),
        };
        let row = self.0.entry((rank, name, format.to_string())).or_default();
        row.tensors += 1;
        row.weights += (part.place.rows as u64).saturating_mul(part.place.columns as u64);
        row.bytes += (part.place.rows * format.row_bytes(part.place.columns).unwrap_or(0)) as u64;
        row.squares.add(squares);
    }

    pub(super) fn summary(self, file_bytes: u64, changed: Vec<Changed>) -> Summary {
        let bits = |bytes: u64, weights: u64| 8.0 * bytes as f64 / weights.max(1) as f64;
        let row = |((_, part, format), row): ((usize, String, String), OfRow)| {
            let OfRow { tensors, weights, bytes, squares: Squares { of_weights, of_errors } } = row;
            let relative_error = if of_errors > 0.0 { (of_errors / of_weights).sqrt() } else { 0.0 };
            let bits_per_weight = bits(bytes, weights);
            SummaryRow { part, format, tensors, weights, bytes, bits_per_weight, relative_error }
        };
        let rows: Vec<_> = self.0.into_iter().map(row).collect();
        let weights = rows.iter().map(|row| row.weights).sum();
        let bytes = rows.iter().map(|row| row.bytes).sum();
        Summary { weights, bytes, bits_per_weight: bits(bytes, weights), file_bytes, changed, rows }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["part", "type", "tensors", "bits/weight", "bytes", "error"].map(str::to_owned);
        let error =
            |error: f64| if error > 0.0 { format!("{:.3} %", 100.0 * error) } else { "none".to_owned() };
        let row = |row: &SummaryRow| {
            let (bits, error) = (format!("{:.2}", row.bits_per_weight), error(row.relative_error));
            let (tensors, bytes) = (row.tensors.to_string(), row.bytes.to_string());
            [row.part.clone(), row.format.clone(), tensors, bits, bytes, error]
        };
        let tensors: usize = self.rows.iter().map(|row| row.tensors).sum();
        let bits = format!("{:.2}", self.bits_per_weight);
        let total = [
            "total".to_owned(),
            String::new(),
            tensors.to_string(),
            bits,
            self.bytes.to_string(),
            String::new(),
        ];
        let lines: Vec<_> = [head].into_iter().chain(self.rows.iter().map(row)).chain([total]).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for line in &lines {
            let [part, format, tensors, bits, bytes, error] = line;
            let [w0, w1, w2, w3, w4, w5] = widths;
            let line =
                format!("{part:w0$}  {format:w1$}  {tensors:>w2$}  {bits:>w3$}  {bytes:>w4$}  {error:>w5$}");
            writeln!(f, "{}", line.trim_end())?;
        }
        // Of tensors that differ in layer and expert alone, one line.
        let mut groups: BTreeMap<(&str, &str, usize), (usize, &str)> = BTreeMap::new();
        for Changed { tensor, columns, wanted, got } in &self.changed {
            groups.entry((wanted, got, *columns)).or_insert((0, tensor)).0 += 1;
        }
        for ((wanted, got, columns), (count, first)) in groups {
            let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            writeln!(
                f,
                "{first}{others}: {got} in place of {wanted}, as rows of {columns} are no whole blocks of that"
            )?;
        }
        Ok(())
    }
}
