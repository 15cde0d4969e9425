//! The weight files of a model directory.
//!
//! Opening reads and checks headers only, so that a checkpoint of any size opens in milliseconds; a tensor's bytes
//! are touched when somebody asks for them. Files are untrusted: whatever a header, an index or a name claims is
//! checked against the file's real size before anything of that size is allocated, and only regular files are opened.

mod file;
mod header;
mod index;
mod layout;
mod map;
mod values;
mod verify;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use moe_kernels::Dtype;

#[cfg(doc)]
use crate::Error;
use crate::Result;
use file::WeightFile;
use header::{Entry, brief_shape, tensor_error};
use index::Index;
pub use layout::Layout;

/// How a tensor's bytes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Files are memory-mapped and weights used where they lie. Pages come from the disk when first touched and can
    /// be given back, so that a checkpoint may be larger than memory. The files must not change meanwhile: if one is
    /// truncated, touching what it lost ends the process.
    #[default]
    Map,
    /// The same with all pages brought in at once, where the system does that (Linux), so that no later pass waits for
    /// the disk, as long as the system does not take them back.
    Prefault,
    /// The same with all pages kept in memory. The system may forbid so much, or any, and then opening fails.
    Lock,
    /// Each tensor is read into memory, in large pages where the system gives them, when it is asked for. A file that shrinks
    /// or fails gives an error.
    Read,
}

/// The weight files of a model, open and their headers checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    layout: Layout,
    files: Vec<WeightFile>,
    /// By file, then by place in the file.
    tensors: Vec<Stored>,
    /// Position in `tensors`.
    by_name: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Stored {
    name: Arc<str>,
    /// Position in `files`.
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// What a header says of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorEntry<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it.
    pub path: &'a Path,
    /// Its shape.
    pub shape: &'a [usize],
    /// The bytes it takes.
    pub bytes: u64,
    stored: safetensors::Dtype,
}

impl TensorEntry<'_> {
    /// The element type, if it is one that weights can have.
    pub fn dtype(&self) -> Option<Dtype> {
        weight_dtype(self.stored)
    }

    /// The element type as the file spells it, such as `BF16` or `F8_E4M3`.
    pub fn dtype_name(&self) -> String {
        self.stored.to_string()
    }
}

/// A tensor and its bytes.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it.
    pub path: &'a Path,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: &'a [usize],
    /// The elements, little-endian and of no particular alignment. Clones and slices share them.
    pub bytes: Bytes,
}

impl Checkpoint {
    /// Opens the weights of a directory: `model.safetensors` or, if there is none, the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// The index must name plain files beside it, which may be symbolic links (the hub's cache is made of them).
    /// Every tensor it lists must be in the shard it says; a tensor must not be in two shards. A tensor that it
    /// does not list is found all the same.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read; [`Error::Checkpoint`] if it is no regular file, no complete
    /// safetensors file, or of a layout that is not supported; [`Error::Json`] if a header or the index is damaged;
    /// [`Error::Tensor`] if an entry of a header is impossible or the index and a shard disagree about it;
    /// [`Error::Config`] if a field of the index is not as expected.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if there(&single) {
            Self::from_file(dir, WeightFile::open(single, access)?)
        } else if there(&index) {
            Self::open_shards(dir, &index, access)
        } else {
            Err(layout::no_weights(dir))
        }
    }

    /// The same of a single safetensors file in memory; `name` is what errors and entries call it.
    pub fn from_bytes(name: &Path, bytes: Bytes) -> Result<Self> {
        Self::from_file(name, WeightFile::from_bytes(name.to_path_buf(), bytes)?)
    }

    fn from_file(root: &Path, (file, entries): (WeightFile, Vec<Entry>)) -> Result<Self> {
        let mut this = Self::empty(root);
        this.add(file, entries, |_| None)?;
        this.finish()
    }

    fn open_shards(dir: &Path, index_path: &Path, access: Access) -> Result<Self> {
        let index = Index::read(index_path)?;
        let mut this = Self::empty(dir);
        for shard in index.shards() {
            let (file, entries) = WeightFile::open(dir.join(shard), access)?;
            this.add(file, entries, |tensor| index.map.get(tensor).filter(|home| *home != shard).cloned())?;
        }
        for (tensor, shard) in &index.map {
            if !this.by_name.contains_key(tensor.as_str()) {
                let expected = "the tensor that the index places here".to_owned();
                return Err(tensor_error(&dir.join(shard), tensor, expected, "nothing".to_owned()));
            }
        }
        this.finish()
    }

    fn empty(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            layout: Layout::HubPerExpert,
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// Adds a file and its tensors. `elsewhere` says where else a tensor ought to be, if not here.
    fn add(
        &mut self,
        file: WeightFile,
        entries: Vec<Entry>,
        elsewhere: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for Entry { name, dtype, shape, begin, end } in entries {
            let elsewhere = elsewhere(&name).or_else(|| {
                let home = self.entry(&name)?.path.file_name()?;
                Some(home.to_string_lossy().into_owned())
            });
            if let Some(elsewhere) = elsewhere {
                return Err(tensor_error(
                    &file.path,
                    &name,
                    format!("it in {elsewhere}"),
                    "it here".to_owned(),
                ));
            }
            let name: Arc<str> = name.into();
            self.by_name.insert(name.clone(), self.tensors.len());
            self.tensors.push(Stored { name, file: self.files.len(), dtype, shape, begin, end });
        }
        self.files.push(file);
        Ok(())
    }

    fn finish(mut self) -> Result<Self> {
        self.layout = Layout::of(self.tensors.iter().map(|stored| &*stored.name), &self.root)?;
        Ok(self)
    }

    /// The directory, or the name given to [`from_bytes`](Checkpoint::from_bytes).
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The layout its names show.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The weight files and their lengths in bytes.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.files.iter().map(|file| (file.path(), file.len))
    }

    /// What the headers say of every tensor, in the order of files and of places in a file.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = TensorEntry<'_>> {
        self.tensors.iter().map(|stored| self.describe(stored))
    }

    /// What a header says of the tensor `name`.
    pub fn entry(&self, name: &str) -> Option<TensorEntry<'_>> {
        self.by_name.get(name).map(|&at| self.describe(&self.tensors[at]))
    }

    /// The tensor `name`, of whatever shape.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if it is missing or its element type is not F32, F16 or BF16; [`Error::Io`] if reading fails.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let stored = self.find(name, None)?;
        self.view(stored)
    }

    /// The tensor `name`, which must have the shape `shape`.
    ///
    /// # Errors
    ///
    /// Those of [`tensor`](Checkpoint::tensor), and [`Error::Tensor`] if it has another shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let stored = self.find(name, Some(shape))?;
        self.view(stored)
    }

    /// The entry of a tensor that is there, has an element type of weights and, if given, this shape.
    fn find(&self, name: &str, shape: Option<&[usize]>) -> Result<&Stored> {
        let expected = || match shape {
            Some(shape) => format!("F32, F16 or BF16 {shape:?}"),
            None => "F32, F16 or BF16".to_owned(),
        };
        let Some(&at) = self.by_name.get(name) else {
            return Err(tensor_error(&self.root, name, expected(), "no such tensor".to_owned()));
        };
        let stored = &self.tensors[at];
        if weight_dtype(stored.dtype).is_none() || shape.is_some_and(|shape| shape != stored.shape) {
            let found = format!("{} {}", stored.dtype, brief_shape(&stored.shape));
            return Err(tensor_error(self.files[stored.file].path(), name, expected(), found));
        }
        Ok(stored)
    }

    fn view<'a>(&'a self, stored: &'a Stored) -> Result<TensorView<'a>> {
        let file = &self.files[stored.file];
        let dtype = weight_dtype(stored.dtype).ok_or_else(|| {
            tensor_error(file.path(), &stored.name, "F32, F16 or BF16".to_owned(), stored.dtype.to_string())
        })?;
        let bytes = file.bytes(stored.begin, stored.end)?;
        Ok(TensorView { name: &stored.name, path: file.path(), dtype, shape: &stored.shape, bytes })
    }

    fn describe<'a>(&'a self, stored: &'a Stored) -> TensorEntry<'a> {
        TensorEntry {
            name: &stored.name,
            path: self.files[stored.file].path(),
            shape: &stored.shape,
            bytes: (stored.end - stored.begin) as u64,
            stored: stored.dtype,
        }
    }
}

fn weight_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}
