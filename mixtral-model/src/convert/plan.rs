//! What is to be written, tensor by tensor, and writing it.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use moe_kernels::{Dtype, WeightFormat};
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, json};

use super::Conversion;
use super::hub::{Beside, replace_directory, write_beside};
use super::rows::{Ended, Rows};
use super::summary::{Changed, Summary, Tally};
use crate::checkpoint::Place;
use crate::gguf::{self, Field, Listed};
use crate::manifest::{TensorKey, elements};
use crate::save::{self, replace};
use crate::{Error, Result, RowOrder};

/// Most bytes of a shard, unless something else is said: what the hub's own tools take.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Output<'c> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) format: WeightFormat,
    /// What was chosen, where rows are no whole blocks of that.
    pub(super) wanted: Option<WeightFormat>,
    /// The model's tensors that it consists of, one below the other.
    pub(super) parts: Vec<Part<'c>>,
}

/// A tensor of the model, where it is, and the order that its rows are to have.
#[derive(Debug)]
pub(super) struct Part<'c> {
    pub(super) key: TensorKey,
    pub(super) place: Place<'c>,
    pub(super) order: RowOrder,
}

impl Output<'_> {
    pub(super) fn weights(&self) -> u64 {
        elements(&self.shape)
    }

    /// The bytes that it will take. Its rows are whole blocks.
    pub(super) fn bytes(&self) -> u64 {
        let columns = self.shape.last().copied().unwrap_or(1);
        let row_bytes = self.format.row_bytes(columns).unwrap_or(0) as u64;
        (self.weights() / (columns as u64).max(1)).saturating_mul(row_bytes)
    }
}

/// A file or a directory that is ready to be written.
pub struct Plan<'c> {
    conversion: &'c Conversion<'c>,
    outputs: Vec<Output<'c>>,
    rest: Rest,
    warnings: Vec<String>,
    shard_bytes: u64,
}

/// What there is besides tensors.
enum Rest {
    Gguf(Vec<(String, Field)>),
    Directory(Vec<Beside>),
}

impl<'c> Plan<'c> {
    pub(super) fn gguf(
        conversion: &'c Conversion<'c>,
        outputs: Vec<Output<'c>>,
        fields: Vec<(String, Field)>,
        warnings: Vec<String>,
    ) -> Self {
        Self { conversion, outputs, rest: Rest::Gguf(fields), warnings, shard_bytes: SHARD_BYTES }
    }

    pub(super) fn directory(
        conversion: &'c Conversion<'c>,
        outputs: Vec<Output<'c>>,
        files: Vec<Beside>,
        warnings: Vec<String>,
    ) -> Self {
        Self { conversion, outputs, rest: Rest::Directory(files), warnings, shard_bytes: SHARD_BYTES }
    }

    /// The same, of a directory, with so many bytes of tensors in a file at most, unless a single tensor has more; 5 GB if nothing is said.
    pub fn with_shard_bytes(self, shard_bytes: u64) -> Self {
        Self { shard_bytes, ..self }
    }

    /// What a user should know before.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many weights there are.
    pub fn weights(&self) -> u64 {
        self.outputs.iter().map(Output::weights).sum()
    }

    /// The bytes that they will take.
    pub fn bytes(&self) -> u64 {
        self.outputs.iter().map(Output::bytes).sum()
    }

    /// Writes the file or the directory. It appears when it is complete and on the disk; until then a hidden one lies beside it. A file
    /// may be there already and is replaced; a directory must be empty.
    ///
    /// `progress` is told how many weights are done, every few million of them, and may end the work.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if `progress` ends it; [`Error::Tensor`] for values that a type cannot hold, NaN and infinities
    /// mostly; [`Error::Io`] if reading or writing fails; [`Error::Checkpoint`] for a directory that is not empty;
    /// [`Error::OutOfMemory`].
    pub fn write(&self, path: &Path, progress: impl FnMut(u64) -> ControlFlow<()>) -> Result<Summary> {
        let mut work = Work { conversion: self.conversion, tally: Tally::default(), weights: 0, progress };
        let file_bytes = match &self.rest {
            Rest::Gguf(fields) => work.gguf(path, &self.outputs, fields)?,
            Rest::Directory(files) => replace_directory(path, |dir| {
                write_beside(dir, files)?;
                work.shards(dir, &self.outputs, self.shard_bytes)
            })?,
        };
        let changed = self.outputs.iter().filter_map(|output| {
            let (wanted, got) = (output.wanted?.to_string(), output.format.to_string());
            let columns = output.shape.last().copied().unwrap_or(1);
            Some(Changed { tensor: output.name.clone(), columns, wanted, got })
        });
        Ok(work.tally.summary(file_bytes, changed.collect()))
    }
}

/// Writing, and what is known of it so far.
struct Work<'c, P> {
    conversion: &'c Conversion<'c>,
    tally: Tally,
    weights: u64,
    progress: P,
}

impl<P: FnMut(u64) -> ControlFlow<()>> Work<'_, P> {
    /// Writes a GGUF file; its length.
    fn gguf(&mut self, path: &Path, outputs: &[Output<'_>], fields: &[(String, Field)]) -> Result<u64> {
        let failed = |source| Error::Io { path: path.to_path_buf(), source };
        let listed: Vec<_> = outputs.iter().map(listed).collect();
        replace(path, |out| {
            gguf::write_header(out, fields, &listed).map_err(failed)?;
            for output in outputs {
                self.tensor(output, out, path)?;
                out.write_all(&vec![0; gguf::padding(output.bytes())]).map_err(failed)?;
            }
            Ok(())
        })?;
        fs::metadata(path).map(|written| written.len()).map_err(failed)
    }

    /// Writes `model.safetensors`, or shards and their index; the bytes of them all.
    fn shards(&mut self, dir: &Path, outputs: &[Output<'_>], most: u64) -> Result<u64> {
        let mut shards: Vec<&[Output<'_>]> = Vec::new();
        let mut rest = outputs;
        while !rest.is_empty() {
            let mut bytes = 0u64;
            let fit = rest.iter().take_while(|output| {
                bytes = bytes.saturating_add(output.bytes());
                bytes <= most
            });
            let (shard, others) = rest.split_at(fit.count().max(1));
            shards.push(shard);
            rest = others;
        }
        let count = shards.len();
        let (mut map, mut total, mut file_bytes) = (Map::new(), 0, 0);
        for (n, shard) in shards.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
            };
            file_bytes += self.safetensors(&dir.join(&name), shard)?;
            total += shard.iter().map(Output::bytes).sum::<u64>();
            map.extend(shard.iter().map(|output| (output.name.clone(), name.as_str().into())));
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            write_beside(
                dir,
                &[("model.safetensors.index.json".to_owned(), index.to_string().into_bytes())],
            )?;
        }
        Ok(file_bytes)
    }

    /// Writes a safetensors file; its length.
    fn safetensors(&mut self, path: &Path, outputs: &[Output<'_>]) -> Result<u64> {
        let failed = |source| Error::Io { path: path.to_path_buf(), source };
        let mut end = 0;
        let infos = outputs.iter().map(|output| {
            let begin = end;
            end += output.bytes() as usize;
            let dtype = match output.format {
                WeightFormat::Plain(Dtype::F16) => StoredDtype::F16,
                WeightFormat::Plain(Dtype::Bf16) => StoredDtype::BF16,
                _ => StoredDtype::F32,
            };
            let shape = output.shape.clone();
            (output.name.clone(), TensorInfo { dtype, shape, data_offsets: (begin, end) })
        });
        let infos = infos.collect();
        replace(path, |out| {
            save::write_header(out, None, infos).map_err(failed)?;
            outputs.iter().try_for_each(|output| self.tensor(output, out, path))
        })?;
        fs::metadata(path).map(|written| written.len()).map_err(failed)
    }

    /// Writes the bytes of a tensor.
    fn tensor(&mut self, output: &Output<'_>, out: &mut impl Write, path: &Path) -> Result<()> {
        let Conversion { checkpoint, config, importance, .. } = self.conversion;
        let rows = Rows { checkpoint, head_dim: config.head_dim };
        for part in &output.parts {
            let shape = [part.place.rows, part.place.columns];
            let importance = importance.as_ref().and_then(|all| all.of(part.key, &shape, config));
            let done = |more: u64| {
                self.weights += more;
                match (self.progress)(self.weights) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(Error::Stopped),
                }
            };
            let squares =
                rows.write(part, output.format, importance, out, done).map_err(|ended| match ended {
                    Ended::Failed(error) => error,
                    Ended::Output(source) => Error::Io { path: path.to_path_buf(), source },
                })?;
            self.tally.add(part, output.format, squares);
        }
        Ok(())
    }
}

fn listed(output: &Output<'_>) -> Listed {
    let (name, shape) = (output.name.clone(), output.shape.clone());
    Listed { name, shape, format: output.format, bytes: output.bytes() }
}
