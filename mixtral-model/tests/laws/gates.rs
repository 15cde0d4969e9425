//! Gates of another checkpoint in the place of a model's own.

use std::path::Path;

use mixtral_model::{Access, Checkpoint, Error, Model, SessionOptions};
use moe_core::LinearGate;
use moe_kernels::Backend;
use ndarray::Array2;

use crate::tiny::{Shape, Stored, read};

fn is_gate(name: &str, layers: &[usize]) -> bool {
    layers.iter().any(|n| name == format!("model.layers.{n}.block_sparse_moe.gate.weight"))
}

fn logits(model: &Model, shape: &Shape) -> Vec<u32> {
    read(model, &shape.ids(9), &[9], SessionOptions::default(), &mut ())
}

fn file(shape: &Shape, tensors: &[Stored]) -> Checkpoint {
    Checkpoint::from_bytes(Path::new("gates.safetensors"), shape.safetensors(tensors).into()).unwrap()
}

/// A model with gates of a file is the model that has them itself.
#[test]
fn those_of_a_file() {
    let shape = Shape { layers: 3, ..Shape::plain() };
    let other = Shape { seed: 9, ..shape.clone() };
    let own = logits(&shape.model(Backend::best()), &shape);
    for layers in [&[0, 1, 2][..], &[1], &[0, 2]] {
        let tensors = other.tensors(|_, _| ());
        let gates: Vec<_> = tensors.into_iter().filter(|tensor| is_gate(&tensor.name, layers)).collect();
        let mut mixed = shape.tensors(|_, _| ());
        for gate in &gates {
            *mixed.iter_mut().find(|tensor| tensor.name == gate.name).unwrap() = gate.clone();
        }
        let expected = Model::load(shape.config(), &file(&shape, &mixed), Backend::best()).unwrap();
        let mut model = shape.model(Backend::best());
        assert_eq!(model.load_gates(&file(&shape, &gates)).unwrap(), layers);
        let found = logits(&model, &shape);
        assert_eq!(found, logits(&expected, &shape), "{layers:?}");
        assert_ne!(found, own);
        // The own ones again, from all that a checkpoint has.
        assert_eq!(model.load_gates(&shape.checkpoint(|_, _| ())).unwrap(), [0, 1, 2]);
        assert_eq!(logits(&model, &shape), own);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let shape = Shape { layers: 3, ..Shape::plain() };
    let mut model = shape.model(Backend::best());
    let own = logits(&model, &shape);
    let wide = Shape { experts: 6, ..shape.clone() };
    // Layer 0 fits, layer 2 does not.
    let gates = shape.tensors(|_, v| v.fill(0.0)).into_iter().filter(|t| is_gate(&t.name, &[0]));
    let gates: Vec<_> =
        gates.chain(wide.tensors(|_, _| ()).into_iter().filter(|t| is_gate(&t.name, &[2]))).collect();
    let error = model.load_gates(&file(&shape, &gates)).unwrap_err().to_string();
    assert!(error.contains("layers.2.block_sparse_moe.gate.weight") && error.contains("[6, 37]"), "{error}");
    let none: Vec<_> = shape.tensors(|_, _| ()).into_iter().filter(|t| !t.name.contains("gate")).collect();
    let error = model.load_gates(&file(&shape, &none)).unwrap_err().to_string();
    assert!(
        error.contains("layers.0.block_sparse_moe.gate.weight") && error.contains("no such tensor"),
        "{error}"
    );
    for (layer, shape) in [(3, (5, 37)), (1, (5, 36)), (1, (4, 37))] {
        let gate = Box::new(LinearGate::new(Array2::zeros(shape)));
        assert!(matches!(
            model.replace_gate(layer, gate).err().unwrap(),
            Error::Setting { .. } | Error::Layer { layer: 1, .. }
        ));
    }
    assert_eq!(logits(&model, &shape), own);
    let before = model.replace_gate(1, Box::new(LinearGate::new(Array2::ones((5, 37))))).unwrap();
    assert_ne!(logits(&model, &shape), own);
    model.replace_gate(1, before).unwrap();
    assert_eq!(logits(&model, &shape), own);
}

/// A path is a directory, a safetensors file or a GGUF file, whatever its name.
#[test]
fn a_path_of_any_kind() {
    let shape = Shape::plain();
    let dir = tempfile::tempdir().unwrap();
    let bytes = shape.safetensors(&shape.tensors(|_, _| ()));
    let single = dir.path().join("model.safetensors");
    std::fs::write(&single, &bytes).unwrap();
    for path in [dir.path(), &single] {
        let mut model = shape.model(Backend::best());
        assert_eq!(model.load_gates(&Checkpoint::open_path(path, Access::Map).unwrap()).unwrap(), [0, 1]);
    }
    // What a file is, its first bytes say.
    let renamed = dir.path().join("gates.bin");
    std::fs::write(&renamed, b"GGUF\x09\x00\x00\x00").unwrap();
    let error = Checkpoint::open_path(&renamed, Access::Map).unwrap_err().to_string();
    assert!(error.contains("GGUF"), "{error}");
    std::fs::write(&renamed, &bytes).unwrap();
    let opened = Checkpoint::open_path(&renamed, Access::Map).unwrap();
    assert_eq!(opened.entries().len(), shape.tensors(|_, _| ()).len());
    std::fs::write(&renamed, b"GG").unwrap();
    assert!(Checkpoint::open_path(&renamed, Access::Map).is_err());
    assert!(Checkpoint::open_path(&dir.path().join("none"), Access::Map).is_err());
}
