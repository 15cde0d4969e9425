//! Reading goldens, recording a forward pass, comparing.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mixtral_model::{Model, Observed, Observer, SessionOptions, Step, Wanted, Workspace};
use moe_core::Routed;
use ndarray::{Array2, ArrayView2, s};
use safetensors::SafeTensors;
use serde_json::Value;

/// How many times the reference's own rounding error a result may lie from it. Both sides round: the reference by the error
/// stated beside it, and we, whose sums have the same lengths in another order, by as much; the third is for the largest of
/// many elements being drawn from two distributions.
pub(crate) const ROUNDINGS: f32 = 3.0;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The tensors of a `goldens.safetensors`, as f32 matrices (a vector is one row) and i32 lists.
pub(crate) struct Goldens {
    bytes: Vec<u8>,
    pub(crate) facts: Value,
}

impl Goldens {
    pub(crate) fn read(dir: &Path) -> Self {
        let facts = std::fs::read_to_string(dir.join("goldens.json")).unwrap();
        Self {
            bytes: std::fs::read(dir.join("goldens.safetensors")).unwrap(),
            facts: serde_json::from_str(&facts).unwrap(),
        }
    }

    fn words(&self, name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("no golden {name}"));
        (tensor.shape().to_vec(), tensor.data().as_chunks().0.to_vec())
    }

    pub(crate) fn floats(&self, name: &str) -> Array2<f32> {
        let (shape, words) = self.words(name);
        let columns = *shape.last().unwrap();
        let values = words.into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
        Array2::from_shape_vec((values.len() / columns, columns), values).unwrap()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).1.into_iter().map(|w| u32::try_from(i32::from_le_bytes(w)).unwrap()).collect()
    }
}

/// What a forward pass did, under the goldens' names: `hidden.N`, `router_logits.N`, `weights.N`, `experts.N`.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) floats: HashMap<String, Array2<f32>>,
    pub(crate) experts: HashMap<String, Vec<u32>>,
}

impl Recorder {
    fn append(&mut self, name: String, rows: ArrayView2<'_, f32>) {
        let all = self.floats.entry(name).or_insert_with(|| Array2::zeros((0, rows.ncols())));
        all.append(ndarray::Axis(0), rows).unwrap();
    }
}

impl Observer for Recorder {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let (n, plan) = (routed.layer, routed.plan);
        self.append(format!("router_logits.{n}"), routed.logits);
        for t in 0..plan.tokens() {
            let weights: Vec<f32> = plan.choices(t).map(|c| c.weight).collect();
            self.append(
                format!("weights.{n}"),
                ArrayView2::from_shape((1, weights.len()), &weights).unwrap(),
            );
            self.experts
                .entry(format!("experts.{n}"))
                .or_default()
                .extend(plan.choices(t).map(|c| c.expert as u32));
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.append(format!("hidden.{layer}"), hidden);
        Ok(ControlFlow::Continue(()))
    }
}

/// All logits of a text, read in the given pieces.
pub(crate) fn logits(
    model: &Model,
    ids: &[u32],
    pieces: &[usize],
    observer: &mut dyn Observer,
) -> Array2<f32> {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut workspace = Workspace::new();
    let mut all = Array2::zeros((0, model.config().vocab_size));
    let mut from = 0;
    for n in pieces {
        let step = Step::new(&mut session, &ids[from..from + n]).wanted(Wanted::All);
        let logits = model.forward(&mut [step], &mut workspace, observer).unwrap();
        all.append(ndarray::Axis(0), logits).unwrap();
        from += n;
    }
    assert_eq!(from, ids.len());
    all
}

/// Greedy continuation.
pub(crate) fn greedy(model: &Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let options = mixtral_model::GenerateOptions::new(model, tokens).with_stop(Vec::new());
    let mut workspace = Workspace::new();
    let end = |_| Ok::<_, mixtral_model::Error>(ControlFlow::Continue(()));
    mixtral_model::generate(model, &mut session, prompt, &options, &mut workspace, &mut (), end)
        .unwrap()
        .tokens
}

/// Notes a failure unless the two are of one shape and within `tolerance`; gives the largest distance over the tolerance.
pub(crate) fn compare(
    failures: &mut Vec<String>,
    what: &str,
    found: ArrayView2<'_, f32>,
    expected: ArrayView2<'_, f32>,
    tolerance: f32,
) -> f32 {
    if found.dim() != expected.dim() {
        failures.push(format!("{what}: expected shape {:?}, found {:?}", expected.dim(), found.dim()));
        return f32::NAN;
    }
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let finite = found.iter().all(|v| v.is_finite());
    if !finite || worst > tolerance {
        failures.push(format!("{what}: {worst:e} from the golden, more than {tolerance:e}"));
    }
    worst / tolerance
}

/// The first rows of a matrix.
pub(crate) fn rows(a: &Array2<f32>, n: usize) -> ArrayView2<'_, f32> {
    a.slice(s![..n, ..])
}
