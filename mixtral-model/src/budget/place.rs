//! Where experts lie.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use memmap2::MmapMut;
use moe_kernels::{SwiGluView, WeightFormat, WeightView};

use crate::checkpoint::{GoOn, Place, RawFile, UncachedFile, map};
use crate::manifest::{ExpertMatrix, Manifest};
use crate::{Checkpoint, Config, Error, LayerManifest, Result};

/// Where one matrix lies.
#[derive(Clone, Debug)]
pub(super) struct MatrixPlace {
    pub(super) raw: RawFile,
    offset: u64,
    bytes: usize,
    pub(super) format: WeightFormat,
    rows: usize,
    columns: usize,
}

/// Where the matrices of an expert lie, in the order of their names.
#[derive(Clone, Debug)]
pub(super) struct ExpertPlace(pub(super) [MatrixPlace; 3]);

/// Where all experts of a model lie, by layer and expert.
pub(super) fn places(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<Vec<ExpertPlace>>> {
    let manifest = Manifest::new(config);
    let of_layer = |n: usize| {
        let layer = manifest.layer(n);
        (0..config.experts.of(n)).map(|e| ExpertPlace::of(checkpoint, config, &layer, e)).collect()
    };
    (0..config.layers).map(of_layer).collect()
}

/// The matrices of an expert in memory of its own.
#[derive(Debug)]
pub(super) struct Loaded {
    matrices: [(MmapMut, usize); 3],
    /// Whether the weights were found to be fit for their products.
    pub(super) is_checked: AtomicBool,
}

impl ExpertPlace {
    pub(super) fn of(
        checkpoint: &Checkpoint,
        config: &Config,
        layer: &LayerManifest<'_>,
        expert: usize,
    ) -> Result<Self> {
        let [w1, w2, w3] = ExpertMatrix::ALL.map(|matrix| {
            let place: Place<'_> = checkpoint.place(&layer.expert(expert, matrix), config)?;
            let raw = checkpoint.raw(&place)?;
            let bytes = usize::try_from(place.bytes).map_err(|_| too_large(&place))?;
            let Place { offset, format, rows, columns, .. } = place;
            Ok::<_, Error>(MatrixPlace { raw, offset, bytes, format, rows, columns })
        });
        Ok(Self([w1?, w2?, w3?]))
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|matrix| matrix.bytes as u64).sum()
    }

    /// Whether it is read from a file.
    pub(super) fn is_file(&self) -> bool {
        self.0.iter().all(|matrix| matches!(matrix.raw, RawFile::Uncached(_)))
    }

    /// Whether it is read past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        let mut files = self.files().peekable();
        files.peek().is_some() && files.all(|(file, _)| file.is_direct())
    }

    /// Has it be read past the page cache, where that is possible, or not.
    pub(super) fn read_directly(&self, directly: bool) {
        self.files().for_each(|(file, _)| file.read_directly(directly));
    }

    /// Drops it from the page cache.
    pub(super) fn forget(&self) {
        self.files().for_each(|(file, matrix)| file.forget(matrix.offset, matrix.bytes));
    }

    /// The files of its matrices, as far as they are read from files.
    fn files(&self) -> impl Iterator<Item = (&UncachedFile, &MatrixPlace)> {
        self.0.iter().filter_map(|matrix| match &matrix.raw {
            RawFile::Uncached(file) => Some((&**file, matrix)),
            RawFile::Shared(_) => None,
        })
    }

    /// Whether both are the same bytes of the same file, of the same meaning.
    pub(super) fn is(&self, other: &Self) -> bool {
        let is = |one: &MatrixPlace, other: &MatrixPlace| {
            let what =
                |place: &MatrixPlace| (place.offset, place.bytes, place.format, place.rows, place.columns);
            let same_file = match (&one.raw, &other.raw) {
                (RawFile::Uncached(one), RawFile::Uncached(other)) => one.is(other),
                (RawFile::Shared(one), RawFile::Shared(other)) => one.as_ptr() == other.as_ptr(),
                _ => false,
            };
            same_file && what(one) == what(other)
        };
        self.0.iter().zip(&other.0).all(|(one, other)| is(one, other))
    }

    /// Bytes of memory that it takes.
    pub(super) fn room(&self) -> u64 {
        self.0.iter().map(|matrix| matrix.room() as u64).sum()
    }

    /// How its matrices are stored.
    pub(super) fn formats(&self) -> [WeightFormat; 3] {
        self.0.each_ref().map(|matrix| matrix.format)
    }

    /// Its weights, which were read.
    pub(super) fn view<'a>(&self, loaded: &'a Loaded) -> moe_kernels::Result<SwiGluView<'a>> {
        let view = |n: usize| {
            let (place, (memory, skip)) = (&self.0[n], &loaded.matrices[n]);
            let bytes = memory.get(*skip..*skip + place.bytes).unwrap_or_default();
            WeightView::new(bytes, place.format, place.rows, place.columns)
        };
        Ok(SwiGluView { w1: view(0)?, w2: view(1)?, w3: view(2)? })
    }
}

impl MatrixPlace {
    /// Bytes of memory that it takes.
    pub(super) fn room(&self) -> usize {
        UncachedFile::room(self.offset, self.bytes)
    }

    /// Memory for it: the one that was left over, if that is large enough and no larger than it counts for.
    pub(super) fn memory(&self, left: &mut Vec<MmapMut>) -> io::Result<MmapMut> {
        let room = self.room();
        match left.iter().position(|memory| memory.len() == room) {
            Some(n) => Ok(left.swap_remove(n)),
            None => map::pages(room.max(1)),
        }
    }

    /// Reads it, and gives its place in the memory; piece by piece, as [`GoOn`] says.
    pub(super) fn read(&self, memory: &mut [u8], go_on: &mut GoOn<'_>) -> io::Result<usize> {
        match &self.raw {
            RawFile::Uncached(file) => file.read(self.offset, self.bytes, memory, go_on),
            RawFile::Shared(bytes) => {
                let begin = self.offset as usize;
                let from = bytes.get(begin..begin + self.bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
                memory[..self.bytes].copy_from_slice(from);
                let _ = go_on(self.bytes);
                Ok(0)
            }
        }
    }

    /// Its file, as far as it has one.
    pub(super) fn path(&self) -> &Path {
        match &self.raw {
            RawFile::Uncached(file) => file.path(),
            RawFile::Shared(_) => Path::new("weights in memory"),
        }
    }
}

impl Loaded {
    /// Of matrices that were read, with their places in the memory.
    pub(super) fn new(matrices: [(MmapMut, usize); 3]) -> Self {
        Self { matrices, is_checked: AtomicBool::new(false) }
    }

    /// Gives up its memory.
    pub(super) fn into_memory(self) -> [MmapMut; 3] {
        self.matrices.map(|(memory, _)| memory)
    }
}

fn too_large(place: &Place<'_>) -> Error {
    let expected = "a matrix that memory can hold";
    Error::checkpoint(place.path, expected, format!("{} of {} bytes", place.name, place.bytes))
}
