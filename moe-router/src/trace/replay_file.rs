//! A replay that is known by its file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router};

use super::{Replay, ReplayWeights, TraceError};

/// A [`Replay`] of a trace that is read when something is first routed by it: what a [spec](crate::RouterSpec) can name.
///
/// What is wrong with the file is an error of that routing, and of every one after it for which the file is no better.
#[derive(Debug)]
pub struct ReplayFile {
    path: PathBuf,
    weights: ReplayWeights,
    replay: Mutex<Option<Arc<Replay>>>,
}

impl ReplayFile {
    /// By the trace of that path, which is not opened yet.
    pub fn new(path: impl Into<PathBuf>, weights: ReplayWeights) -> Self {
        Self { path: path.into(), weights, replay: Mutex::default() }
    }

    /// The trace's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The replay, which is read once; who comes meanwhile waits.
    fn replay(&self) -> Result<Arc<Replay>> {
        let mut known = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(replay) = &*known {
            return Ok(replay.clone());
        }
        let read = File::open(&self.path).map_err(TraceError::from);
        let read = read.and_then(|file| Replay::read(file, self.weights));
        let replay = Arc::new(read.map_err(|error| match error {
            TraceError::OutOfMemory(error) => error.into(),
            other => Error::Router {
                setting: "trace",
                expected: "a route trace that can be read".to_owned(),
                found: format!("{}: {other}", self.path.display()),
            },
        })?);
        *known = Some(replay.clone());
        Ok(replay)
    }
}

impl Router for ReplayFile {
    /// # Errors
    ///
    /// Those of [`Replay`]; [`Error::Router`] where the trace cannot be read.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        self.replay()?.route(input, out)
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
