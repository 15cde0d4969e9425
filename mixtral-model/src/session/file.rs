//! A session in a file, and out of it again.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use moe_core::memory;
use moe_kernels::Dtype;
use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};

use super::{Session, SessionOptions};
use crate::checkpoint::Digest;
use crate::input::read_limited;
use crate::save::{Elements, Tensor, save_tensors, write_elements};
use crate::{Error, Model, Result};

/// What the file says it is.
const FORMAT: &str = "mixtral-model session 1";

impl Session {
    /// Writes the session to a safetensors file, from which [`Model::restore`] makes it again. `digest` is that of the
    /// [checkpoint](crate::Checkpoint::digest) that the model was loaded from.
    ///
    /// It holds `tokens` `[T]` (u32) and for each layer N `keys.N` and `values.N`, `[kv_heads, P, head_dim]` in the type of the cache: of
    /// the last P positions, which are all, or those that the layer's window still shows. The metadata say which model computed them,
    /// and how.
    ///
    /// The file appears under its name when it is complete; one that was there is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a session of another model; [`Error::OutOfMemory`]; [`Error::Io`]; [`Error::Checkpoint`] if something other than a regular file has
    /// that name. Nothing is left behind.
    pub fn save(&self, model: &Model, digest: &Digest, path: &Path) -> Result<()> {
        model.check_session(self)?;
        let (dtype, position) = (self.kv_dtype(), self.position());
        let tokens = Tensor {
            name: "tokens".to_owned(),
            shape: vec![position],
            elements: Elements::U32(&self.tokens),
        };
        let mut tensors = vec![tokens];
        for (n, (shape, live)) in self.cache.live(position).enumerate() {
            let shape = vec![shape.kv_heads, live.len(), shape.head_dim];
            let bytes = shape.iter().product::<usize>() * dtype.bytes();
            for (name, half) in [("keys", false), ("values", true)] {
                let pieces = move |each: &mut dyn FnMut(&[u8])| self.cache.export(n, position, half, each);
                tensors.push(Tensor {
                    name: format!("{name}.{n}"),
                    shape: shape.clone(),
                    elements: Elements::Pieces(stored(dtype), bytes, Box::new(pieces)),
                });
            }
        }
        let mut hash = Hash(Sha256::new());
        write_elements(&mut hash, &tensors)
            .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        let about = [
            ("format", FORMAT.to_owned()),
            ("checkpoint", digest.to_string()),
            ("config", config_digest(model).to_string()),
            ("activations", model.compute().activations.to_string()),
            ("context", self.context.to_string()),
            ("sequence_id", self.sequence_id.to_string()),
            ("seed", self.seed.to_string()),
            ("sha256", Digest::from(hash.0).to_string()),
        ];
        let about = about.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        save_tensors(path, Some(about), &tensors)
    }
}

impl Model {
    /// What a session's file takes, at most.
    fn most_bytes(&self) -> u64 {
        /// More than the header of a session of any number of layers that there are.
        const HEADER: u64 = 1 << 20;
        let config = self.config();
        let of_position = 4 + 2 * 4 * config.layers * config.kv_heads * config.head_dim;
        HEADER.saturating_add((of_position as u64).saturating_mul(config.max_positions as u64))
    }

    /// The session that [`Session::save`] has written; what is computed from there has the same bits as if it had gone on, under the same
    /// routers, of which the file says nothing. `digest` is that of the [checkpoint](crate::Checkpoint::digest) that this model was loaded
    /// from.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Checkpoint`] for a file that is no such session, is damaged, or is of a model of other weights, another
    /// config or another kind of products; [`Error::OutOfMemory`].
    pub fn restore(&self, digest: &Digest, path: &Path) -> Result<Session> {
        let bytes = read_limited(path, self.most_bytes())?;
        let file = File::parse(path, &bytes)?;
        file.require("format", FORMAT)?;
        file.require("checkpoint", digest)?;
        file.require("config", config_digest(self))?;
        file.require("activations", self.compute().activations)?;
        // The elements follow each other in the file as they were hashed.
        file.require("sha256", Digest::of(file.data))?;

        let tokens = file.tensor("tokens", safetensors::Dtype::U32, |shape| shape.len() == 1)?;
        let (ids, _) = tokens.data().as_chunks::<4>();
        let keys = file.tensors.tensor("keys.0").map_err(|error| file.error("keys.0", error))?;
        let Some(dtype) = loaded(keys.dtype()) else {
            return Err(file.error("F32, F16 or BF16 keys", format!("{:?}", keys.dtype())));
        };
        let (context, most) = (file.number("context")?, self.config().max_positions);
        if context == 0 || context > most || ids.len() > context {
            let found = format!("a context of {context} with {} tokens", ids.len());
            return Err(
                file.error(format!("a context of 1 to {most} positions that holds the tokens"), found)
            );
        }
        let options = SessionOptions::default()
            .with_kv_dtype(dtype)
            .with_context(context)
            .with_sequence_id(file.number("sequence_id")?)
            .with_seed(file.number("seed")?);
        let mut session = self.session(options)?;
        // Room for what may still be seen, as if it were the last chunk.
        let seen = session.cache.live(ids.len()).map(|(_, live)| live.len()).max().unwrap_or(0);
        memory::reserve(&mut session.tokens, ids.len(), "tokens of a session")?;
        session.cache.reserve(ids.len() - seen, seen, context)?;
        session.tokens.extend(ids.iter().map(|id| u32::from_le_bytes(*id)));
        let vocabulary = self.config().vocab_size;
        if let Some(token) = session.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(file.error(format!("token ids below {vocabulary}"), token));
        }
        for n in 0..self.config().layers {
            let Some((shape, live)) = session.cache.live(ids.len()).nth(n) else { continue };
            let fits = |found: &[usize]| found == [shape.kv_heads, live.len(), shape.head_dim];
            let keys = file.tensor(&format!("keys.{n}"), stored(dtype), fits)?;
            let values = file.tensor(&format!("values.{n}"), stored(dtype), fits)?;
            let row = shape.head_dim * dtype.bytes();
            let rows = keys.data().chunks_exact(row).chain(values.data().chunks_exact(row));
            session.cache.import(n, ids.len(), rows);
        }
        Ok(session)
    }
}

/// A file that says it is a session.
struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    about: HashMap<String, String>,
    /// All elements.
    data: &'a [u8],
}

impl<'a> File<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let failed = |error: safetensors::SafeTensorError| {
            Error::checkpoint(path, "a session, which is a safetensors file", error.to_string())
        };
        let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(failed)?;
        let about = metadata.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes).map_err(failed)?;
        Ok(Self { path, tensors, about, data: bytes.get(8 + header..).unwrap_or_default() })
    }

    fn error(&self, expected: impl Into<String>, found: impl Display) -> Error {
        let found = found.to_string().chars().take(200).flat_map(char::escape_debug).collect::<String>();
        Error::checkpoint(self.path, expected, found)
    }

    fn said(&self, name: &str) -> &str {
        self.about.get(name).map_or("nothing", String::as_str)
    }

    /// Checks what it says of itself.
    fn require(&self, name: &str, expected: impl Display) -> Result<()> {
        let (expected, found) = (expected.to_string(), self.said(name));
        match found == expected {
            true => Ok(()),
            false => Err(self.error(format!("{name} {expected}"), found)),
        }
    }

    fn number<N: std::str::FromStr>(&self, name: &str) -> Result<N> {
        let found = self.said(name);
        found.parse().map_err(|_| self.error(format!("a number as {name}"), found))
    }

    fn tensor(
        &self,
        name: &str,
        dtype: safetensors::Dtype,
        fits: impl FnOnce(&[usize]) -> bool,
    ) -> Result<safetensors::tensor::TensorView<'a>> {
        let tensor = self.tensors.tensor(name).map_err(|error| self.error(name, error))?;
        if tensor.dtype() == dtype && fits(tensor.shape()) {
            return Ok(tensor);
        }
        let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
        Err(self.error(format!("{name} as the model and the tokens imply it"), found))
    }
}

/// What else than weights decides on a model's results, as this version of the program reads it.
fn config_digest(model: &Model) -> Digest {
    Digest::of(format!("{:?}", model.config()))
}

fn stored(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        _ => safetensors::Dtype::F32,
    }
}

fn loaded(dtype: safetensors::Dtype) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|&of_cache| stored(of_cache) == dtype)
}

/// What is written goes into a hash.
struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
