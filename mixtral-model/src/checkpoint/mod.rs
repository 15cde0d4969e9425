//! The weight files of a model: those of a directory, or of a GGUF file and its further parts.
//!
//! Opening reads and checks headers only, so that a checkpoint of any size opens in milliseconds; a tensor's bytes
//! are touched when somebody asks for them. Files are untrusted: whatever a header, an index or a name claims is
//! checked against the file's real size before anything of that size is allocated, and only regular files are opened.

mod digest;
mod file;
mod foreign;
mod index;
pub(crate) mod map;
mod place;
mod safetensors;
mod stored;
mod uncached;
mod values;
mod verify;

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use moe_kernels::WeightFormat;

use crate::input::open_regular;
use crate::layout::{Layout, Spelling};
use crate::{Error, Result, gguf};
pub use digest::Digest;
pub(crate) use file::RawFile;
use file::{Container, WeightFile};
use index::Index;
pub use place::Place;
pub(crate) use stored::{Entry, StoredType};
pub(crate) use uncached::{GoOn, UncachedFile};

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
    /// The same, but on Linux nothing that was read stays in the system's page cache: it is read past it where the file system allows
    /// that, else dropped from it. Elsewhere the system may keep what it likes.
    Uncached,
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
    stored: StoredType,
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
    stored: StoredType,
}

impl TensorEntry<'_> {
    /// How it is stored, if that is a format that weights can have.
    pub fn format(&self) -> Option<WeightFormat> {
        self.stored.format()
    }

    /// The element type as the file spells it, such as `BF16`, `F8_E4M3` or `Q4_K`.
    pub fn format_name(&self) -> String {
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
    /// How its rows are stored.
    pub format: WeightFormat,
    /// Shape, row-major.
    pub shape: &'a [usize],
    /// Row after row, little-endian and of no particular alignment. Clones and slices share them.
    pub bytes: Bytes,
}

impl Checkpoint {
    /// Opens the weights of a directory: `model.safetensors` or the shards that `model.safetensors.index.json` names, or else the
    /// same of `consolidated`, as Mistral's own files are called.
    ///
    /// The index must name files in or below the directory, which may be symbolic links (the hub's cache is made of them).
    /// Every tensor it lists must be in the shard it says; a tensor may be in two shards only with the same bytes. A tensor that
    /// it does not list is found all the same.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read; [`Error::Checkpoint`] if it is no regular file, no complete
    /// safetensors file, or holds weights of a kind that is not supported; [`Error::Json`] if a header or the index is damaged;
    /// [`Error::Tensor`] if an entry of a header is impossible or the index and a shard disagree about it;
    /// [`Error::Config`] if a field of the index is not as expected.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        for name in ["model", "consolidated"] {
            let single = dir.join(format!("{name}.safetensors"));
            if there(&single) {
                return Self::from_files(dir, [WeightFile::open(single, Container::Safetensors, access)?]);
            }
            let index = dir.join(format!("{name}.safetensors.index.json"));
            if there(&index) {
                return Self::open_shards(dir, &index, access);
            }
        }
        Err(foreign::no_weights(dir))
    }

    /// Opens the weights of a GGUF file, given its first part if it is in several.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read; [`Error::Checkpoint`] if it is no regular file or no complete GGUF file;
    /// [`Error::Config`] for impossible metadata; [`Error::Tensor`] for an impossible tensor, or one that two parts have.
    pub fn open_gguf(path: &Path, access: Access) -> Result<Self> {
        let open = |part: PathBuf| WeightFile::open(part, Container::Gguf, access);
        let others = gguf::parts(path)?.others.into_iter().map(|(part, _)| part);
        let files = iter::once(path.to_path_buf()).chain(others).map(open);
        Self::from_files(path, files.collect::<Result<Vec<_>>>()?)
    }

    /// Opens a single safetensors or GGUF file, which its first bytes tell apart; a directory as [`open`](Self::open) does.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) and [`open_gguf`](Self::open_gguf).
    pub fn open_path(path: &Path, access: Access) -> Result<Self> {
        if path.is_dir() {
            return Self::open(path, access);
        }
        let (mut file, mut magic) = (open_regular(path)?.0, [0; gguf::MAGIC.len()]);
        let is_gguf = file.read_exact(&mut magic).is_ok() && magic == *gguf::MAGIC;
        match is_gguf {
            true => Self::open_gguf(path, access),
            false => Self::from_files(
                path,
                [WeightFile::open(path.to_path_buf(), Container::Safetensors, access)?],
            ),
        }
    }

    /// The same of a single safetensors or GGUF file in memory; `name` is what errors and entries call it.
    pub fn from_bytes(name: &Path, bytes: Bytes) -> Result<Self> {
        Self::from_files(name, [WeightFile::from_bytes(name.to_path_buf(), bytes)?])
    }

    fn from_files(root: &Path, files: impl IntoIterator<Item = (WeightFile, Vec<Entry>)>) -> Result<Self> {
        let mut this = Self::empty(root);
        for (file, entries) in files {
            this.add(file, entries, |_| true)?;
        }
        this.finish()
    }

    fn open_shards(dir: &Path, index_path: &Path, access: Access) -> Result<Self> {
        let index = Index::read(index_path)?;
        let (mut this, mut all_strays) = (Self::empty(dir), Vec::new());
        for shard in index.shards() {
            let (file, entries) = WeightFile::open(dir.join(shard), Container::Safetensors, access)?;
            let strays =
                this.add(file, entries, |tensor| index.map.get(tensor).is_none_or(|home| home == shard))?;
            all_strays.extend(strays);
        }
        for stray in &all_strays {
            this.require_copy(stray, index.map.get(&*stray.name).map_or("", String::as_str))?;
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
            layout: Layout::of(iter::empty()),
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// Adds a file and those of its tensors that are `at_home` in it; gives back the others.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if another file has the same tensor with other bytes.
    fn add(
        &mut self,
        file: WeightFile,
        entries: Vec<Entry>,
        at_home: impl Fn(&str) -> bool,
    ) -> Result<Vec<Stored>> {
        let (number, mut strays) = (self.files.len(), Vec::new());
        self.files.push(file);
        for Entry { name, stored, shape, begin, end } in entries {
            let name: Arc<str> = name.into();
            let tensor = Stored { name: name.clone(), file: number, stored, shape, begin, end };
            if !at_home(&name) {
                strays.push(tensor);
            } else if let Some(&there) = self.by_name.get(&name) {
                let home = self.files[self.tensors[there].file].path().to_path_buf();
                self.require_copy(&tensor, &home.file_name().unwrap_or_default().to_string_lossy())?;
            } else {
                self.by_name.insert(name, self.tensors.len());
                self.tensors.push(tensor);
            }
        }
        Ok(strays)
    }

    /// Checks that a tensor is a copy of the one of its name that is known, in the file `home`.
    fn require_copy(&self, copy: &Stored, home: &str) -> Result<()> {
        let path = self.files[copy.file].path();
        let Some(&original) = self.by_name.get(&copy.name) else {
            return Err(tensor_error(path, &copy.name, format!("it in {home}"), "it here".to_owned()));
        };
        let original = &self.tensors[original];
        let bytes = |tensor: &Stored| self.files[tensor.file].bytes(tensor.begin, tensor.end);
        if (original.stored, &original.shape) == (copy.stored, &copy.shape)
            && bytes(original)? == bytes(copy)?
        {
            return Ok(());
        }
        let expected = format!("it in {home} alone, or the same there and here");
        Err(tensor_error(path, &copy.name, expected, "another here".to_owned()))
    }

    fn finish(mut self) -> Result<Self> {
        let names = self.tensors.iter().map(|stored| &*stored.name);
        self.layout = match self.files.first().map(WeightFile::container) {
            Some(Container::Gguf) => Layout::of_gguf(names.clone()),
            _ => Layout::of(names.clone()),
        };
        foreign::refuse(names, &self.layout, &self.root)?;
        Ok(self)
    }

    /// The directory, or the name given to [`from_bytes`](Checkpoint::from_bytes).
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The layout its names show.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The weight files and their lengths in bytes.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.files.iter().map(|file| (file.path(), file.len()))
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
    /// [`Error::Tensor`] if it is missing or of a type that weights cannot have; [`Error::Io`] if reading fails.
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

    /// The entry of a tensor that is there, has a type of weights and, if given, this shape.
    fn find(&self, name: &str, shape: Option<&[usize]>) -> Result<&Stored> {
        let types = match self.layout.spelling() {
            Spelling::Gguf => "a type of GGUF files",
            _ => "F32, F16 or BF16",
        };
        let expected = || shape.map_or_else(|| types.to_owned(), |shape| format!("{types} {shape:?}"));
        let Some(&at) = self.by_name.get(name) else {
            return Err(tensor_error(&self.root, name, expected(), "no such tensor".to_owned()));
        };
        let stored = &self.tensors[at];
        let wrong =
            |expected, found| Err(tensor_error(self.files[stored.file].path(), name, expected, found));
        let found = brief_shape(&stored.shape);
        match shape.filter(|shape| *shape != stored.shape) {
            _ if stored.stored.format().is_none() => wrong(expected(), format!("{} {found}", stored.stored)),
            Some(shape) => wrong(format!("shape {shape:?}"), found),
            None => Ok(stored),
        }
    }

    fn view<'a>(&'a self, stored: &'a Stored) -> Result<TensorView<'a>> {
        let file = &self.files[stored.file];
        let format = stored.stored.format().ok_or_else(|| {
            tensor_error(file.path(), &stored.name, "a type of weights".to_owned(), stored.stored.to_string())
        })?;
        let bytes = file.bytes(stored.begin, stored.end)?;
        Ok(TensorView { name: &stored.name, path: file.path(), format, shape: &stored.shape, bytes })
    }

    fn describe<'a>(&'a self, stored: &'a Stored) -> TensorEntry<'a> {
        TensorEntry {
            name: &stored.name,
            path: self.files[stored.file].path(),
            shape: &stored.shape,
            bytes: (stored.end - stored.begin) as u64,
            stored: stored.stored,
        }
    }
}

/// An error about a tensor. Its name may come from a hostile file: it is cut, and control characters are escaped.
pub(crate) fn tensor_error(path: &Path, tensor: &str, expected: String, found: String) -> Error {
    let tensor = tensor.chars().take(200).flat_map(char::escape_debug).collect();
    Error::Tensor { path: path.to_path_buf(), tensor, expected, found }
}

/// A shape in a message; a hostile one may have a million dimensions.
fn brief_shape(shape: &[usize]) -> String {
    match shape.get(..8) {
        Some(first) if shape.len() > 8 => format!("{first:?}... of rank {}", shape.len()),
        _ => format!("{shape:?}"),
    }
}
