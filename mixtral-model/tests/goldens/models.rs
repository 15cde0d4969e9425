//! The tiny checkpoints.

use std::path::Path;

use mixtral_model::{Access, Checkpoint, Config, Dump, Manifest, Model, SessionOptions, Workspace};
use moe_core::{MoeLayer, Router, TokenContext};
use moe_kernels::{Backend, Linear, SwiGluExperts, SwiGluWeights};
use moe_router::TopK;
use ndarray::Array2;

use crate::support::{Goldens, ROUNDINGS, Recorder, compare, fixtures, greedy, logits};

const VARIANTS: [&str; 11] = [
    "bf16-3-shards",
    "f16-single",
    "f32-single",
    "gqa-8q-2kv",
    "head-dim-24-odd",
    "head-dim-96-long",
    "mha-top1",
    "tied-theta-1e4",
    "top3-of-6",
    "window-100-long",
    "window-8",
];

/// The error that the reference itself has, times what we allow.
fn tolerance(goldens: &Goldens, name: &str) -> f32 {
    let error =
        goldens.facts["f32_vs_f64_max_abs"][name].as_f64().unwrap_or_else(|| panic!("no error of {name}"));
    // A weight of a single expert is exactly 1 on both sides, and stays so.
    ROUNDINGS * error as f32
}

fn check(name: &str, backend: Backend, access: Access, failures: &mut Vec<String>) -> f32 {
    let dir = fixtures().join("models").join(name);
    let goldens = Goldens::read(&dir);
    let config = Config::from_dir(&dir).unwrap();
    let layers = config.layers;
    let model = Model::load(config, &Checkpoint::open(&dir, access).unwrap(), backend).unwrap();
    let ids = goldens.ids("input_ids");
    let label = |what: &str| format!("{name} {backend} {what}");
    let mut worst = 0.0f32;

    let mut recorder = Recorder::default();
    let whole = logits(&model, &ids, &[ids.len()], &mut recorder);
    let mut near = |what: &str, found: &Array2<f32>, failures: &mut Vec<String>| {
        let ratio = compare(
            failures,
            &label(what),
            found.view(),
            goldens.floats(what).view(),
            tolerance(&goldens, what),
        );
        worst = worst.max(ratio);
    };
    near("logits", &whole, failures);
    for n in 0..layers {
        for kind in ["hidden", "router_logits", "weights"] {
            let what = format!("{kind}.{n}");
            near(&what, &recorder.floats[&what], failures);
        }
        let what = format!("experts.{n}");
        if recorder.experts[&what] != goldens.ids(&what) {
            failures.push(label(&what));
        }
    }

    // The cached run: near the golden, and to the bit what the whole run gave.
    let cut = goldens.facts["prompt_length_of_cached_run"].as_u64().unwrap() as usize;
    let mut pieces = vec![cut];
    pieces.resize(1 + ids.len() - cut, 1);
    let mut again = Recorder::default();
    let cached = logits(&model, &ids, &pieces, &mut again);
    near("cached_logits", &cached, failures);
    if cached != whole || again.floats != recorder.floats || again.experts != recorder.experts {
        failures.push(label("cached run differs from the whole one"));
    }

    let mut session = model.session(SessionOptions::default()).unwrap();
    let dump = Dump::record(&model, &mut session, &ids, cut, &mut Workspace::new(), &mut ()).unwrap();
    let mut same = dump.logits() == whole && session.tokens() == ids;
    for n in 0..layers {
        same &= dump.hidden(n) == recorder.floats[&format!("hidden.{n}")]
            && dump.router_logits(n) == recorder.floats[&format!("router_logits.{n}")]
            && (0..ids.len())
                .flat_map(|t| dump.choices(n).experts(t))
                .eq(&recorder.experts[&format!("experts.{n}")])
            && (0..ids.len())
                .flat_map(|t| dump.choices(n).weights(t))
                .eq(&recorder.floats[&format!("weights.{n}")]);
    }
    if !same {
        failures.push(label("dump"));
    }

    let expected = goldens.ids("greedy_ids");
    if greedy(&model, &ids[..8], expected.len()) != expected {
        failures.push(label("greedy_ids"));
    }
    worst
}

#[test]
fn every_variant_on_every_backend() {
    let mut failures = Vec::new();
    for name in VARIANTS {
        for backend in Backend::available() {
            let worst = check(name, backend, Access::Map, &mut failures);
            println!("{name} {backend}: at most {worst:.2} of the tolerance");
        }
        check(name, Backend::best(), Access::Read, &mut failures);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The sparse block alone, built from the three slots as a dependant would.
fn moe_block(dir: &Path, config: &Config, backend: Backend) -> MoeLayer {
    let checkpoint = Checkpoint::open(dir, Access::Map).unwrap();
    let manifest = Manifest::new(config).layer(0);
    let matrix = |spec: mixtral_model::TensorSpec| {
        checkpoint.matrix(&checkpoint.place(&spec, config).unwrap()).unwrap()
    };
    let experts = (0..config.experts.most())
        .map(|e| {
            let [w1, w2, w3] = mixtral_model::ExpertMatrix::ALL.map(|m| matrix(manifest.expert(e, m)));
            SwiGluWeights { w1, w2, w3 }
        })
        .collect();
    let router: Box<dyn Router> = Box::new(TopK::new(config.experts_per_token).unwrap());
    let experts = SwiGluExperts::new(experts, backend).unwrap();
    MoeLayer::new(Box::new(Linear::new(matrix(manifest.gate()), backend)), router, Box::new(experts)).unwrap()
}

#[test]
fn moe_block_alone() {
    let mut failures = Vec::new();
    for name in VARIANTS {
        let dir = fixtures().join("models").join(name);
        let goldens = Goldens::read(&dir);
        let (input, expected) = (goldens.floats("moe_in.0"), goldens.floats("moe_out.0"));
        for backend in Backend::available() {
            let layer = moe_block(&dir, &Config::from_dir(&dir).unwrap(), backend);
            let mut y = Array2::zeros(input.dim());
            let mut workspace = moe_core::Workspace::new();
            layer.forward(input.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut()).unwrap();
            // The input is the reference's own f32 one, so that only this block's rounding counts; its error is stated for
            // the whole way from the embedding, which is more.
            compare(
                &mut failures,
                &format!("{name} {backend}"),
                y.view(),
                expected.view(),
                tolerance(&goldens, "moe_out.0"),
            );
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
