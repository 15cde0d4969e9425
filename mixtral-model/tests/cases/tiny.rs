//! A tiny model whose weights several cases share: each has a directory with its own configs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mixtral_model::{
    Checkpoint, Config, Ended, Error, GenerateOptions, Model, SessionOptions, Workspace, generate,
};
use moe_kernels::Backend;

/// The directory of a case.
pub(crate) fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases").join(name)
}

/// The tiny model under a case's configs.
pub(crate) fn model(name: &str) -> Model {
    load(Config::from_dir(&case(name)).unwrap())
}

/// The tiny model under a config.
pub(crate) fn load(config: Config) -> Model {
    let weights = std::fs::read(case("tiny-2048.safetensors")).unwrap();
    let checkpoint = Checkpoint::from_bytes(Path::new("tiny-2048"), Bytes::from(weights)).unwrap();
    Model::load(config, &checkpoint, Backend::best()).unwrap()
}

/// The prompt that all cases have.
pub(crate) const PROMPT: [u32; 3] = [1, 300, 301];

/// What follows a prompt.
pub(crate) fn continued(model: &Model, prompt: &[u32], options: &GenerateOptions) -> (Vec<u32>, Ended) {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut workspace = Workspace::new();
    let go_on = |_| Ok::<_, Error>(ControlFlow::Continue(()));
    let generated = generate(model, &mut session, prompt, options, &mut workspace, &mut (), go_on).unwrap();
    (generated.tokens, generated.ended)
}
