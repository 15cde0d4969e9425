//! GGUF files that llama.cpp wrote: the values of their tensors, by the digests of what the `gguf` package makes of them, and what
//! Transformers and llama.cpp compute from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use mixtral_model::{Access, Checkpoint, Compute, Model, RowOrder, Source};
use moe_kernels::{Activations, Backend, WeightView};
use ndarray::Array2;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::oracle;
use crate::support::{Goldens, ROUNDINGS, Recorder, compare, fixtures, logits};

/// How many tensors of each type the goldens name: 23 for each of fifteen files.
const COUNTS: [(&str, usize); 15] = [
    ("F16", 16),
    ("F32", 105),
    ("IQ4_NL", 15),
    ("IQ4_XS", 15),
    ("MXFP4", 6),
    ("Q2_K", 9),
    ("Q3_K", 15),
    ("Q4_0", 30),
    ("Q4_1", 15),
    ("Q4_K", 17),
    ("Q5_0", 15),
    ("Q5_1", 15),
    ("Q5_K", 15),
    ("Q6_K", 31),
    ("Q8_0", 26),
];

/// What a golden says of a tensor; its shape is innermost first.
#[derive(Debug, PartialEq)]
struct Facts {
    ty: String,
    shape: Vec<usize>,
    sha256: String,
}

impl Facts {
    fn of_golden(golden: &Value) -> Self {
        let text = |field: &str| golden[field].as_str().unwrap().to_owned();
        let shape = serde_json::from_value(golden["shape"].clone()).unwrap();
        Self { ty: text("type"), shape, sha256: text("sha256") }
    }
}

/// The name of the tensor of all experts that an expert's tensor of the older layout is part of, and which part:
/// `blk.0.ffn_up.3.weight` is the fourth of `blk.0.ffn_up_exps.weight`.
fn part_of(name: &str) -> Option<(String, usize)> {
    let (name, expert) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    Some((format!("{name}_exps.weight"), expert.parse().ok()?))
}

/// Widens the matrix and adds its values to what is hashed, in little-endian order.
fn hash(matrix: WeightView<'_>, sha256: &mut Sha256) {
    let mut row = vec![f32::NAN; matrix.columns()];
    for i in 0..matrix.rows() {
        matrix.widen_row(i, &mut row);
        sha256.update(row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
}

/// The tensors of a file under the goldens' names, the older layout's experts put together.
fn found(file: &Checkpoint) -> BTreeMap<String, Facts> {
    let mut hashes: BTreeMap<String, (Facts, Sha256)> = BTreeMap::new();
    for entry in file.entries() {
        let tensor = file.tensor(entry.name).unwrap();
        // As the file has it, innermost first.
        let of_file: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        let (columns, rows) = (of_file[0], of_file[1..].iter().product());
        let matrix = WeightView::new(&tensor.bytes, tensor.format, rows, columns).unwrap();
        let ty = tensor.format.to_string().to_uppercase();
        let part = part_of(tensor.name);
        let (name, shape) = match &part {
            Some((whole, _)) => (whole.as_str(), [&of_file[..], &[0]].concat()),
            None => (tensor.name, of_file),
        };
        assert!(part.is_some() || !hashes.contains_key(name), "{name} twice");
        let (facts, sha256) = hashes
            .entry(name.to_owned())
            .or_insert_with(|| (Facts { ty: ty.clone(), shape, sha256: String::new() }, Sha256::new()));
        if let Some((_, expert)) = part {
            let experts = facts.shape.last_mut().unwrap();
            assert_eq!((&ty, expert), (&facts.ty, *experts), "{}: type, and experts ascending", tensor.name);
            *experts += 1;
        }
        hash(matrix, sha256);
    }
    let digest = |sha256: Sha256| sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let facts =
        hashes.into_iter().map(|(name, (facts, sha256))| (name, Facts { sha256: digest(sha256), ..facts }));
    facts.collect()
}

/// What the goldens say of a file's tensors; one may be another file's in another layout.
fn expected(files: &Map<String, Value>, name: &str) -> BTreeMap<String, Facts> {
    let file = match files[name]["same_as"].as_str() {
        Some(other) => &files[other],
        None => &files[name],
    };
    let tensors = file["tensors"].as_object().unwrap();
    tensors.iter().map(|(name, golden)| (name.clone(), Facts::of_golden(golden))).collect()
}

#[test]
fn every_tensor_has_the_values_of_gguf() {
    let dir = fixtures().join("gguf");
    let goldens: Value = serde_json::from_slice(&fs::read(dir.join("goldens.json")).unwrap()).unwrap();
    let files = goldens["files"].as_object().unwrap();
    let there: BTreeSet<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    assert_eq!(there, files.keys().cloned().collect());

    let (mut counts, mut failures) = (BTreeMap::new(), Vec::new());
    for file in &there {
        let checkpoint = Checkpoint::open_gguf(&dir.join(file), Access::Map).unwrap();
        let (found, expected) = (found(&checkpoint), expected(files, file));
        for name in found.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
            let (found, expected) = (found.get(name), expected.get(name));
            if found != expected {
                failures.push(format!("{file} {name}: expected {expected:?}, found {found:?}"));
            }
        }
        for facts in found.into_values() {
            *counts.entry(facts.ty).or_insert(0) += 1;
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(counts, COUNTS.map(|(ty, count)| (ty.to_owned(), count)).into());
    assert_eq!(counts.values().sum::<usize>(), 345);
}

/// The files' names without `.gguf`, and the tokens they are tried with.
fn files() -> (Vec<String>, Vec<u32>) {
    let goldens = Goldens::read(&fixtures().join("gguf")).facts;
    let files = goldens["files"].as_object().unwrap();
    let types = files.keys().map(|file| file.strip_suffix(".gguf").unwrap().to_owned()).collect();
    (types, serde_json::from_value(goldens["ids"].clone()).unwrap())
}

fn model(file: &str, access: Access, compute: Compute) -> Model {
    let source = Source::find(&fixtures().join(format!("gguf/{file}.gguf"))).unwrap();
    assert_eq!(source.warnings().unwrap(), Vec::<String>::new());
    Model::load(source.config().unwrap(), &source.checkpoint(access).unwrap(), compute).unwrap()
}

#[test]
fn logits_and_experts_are_those_of_transformers() {
    let (types, ids) = files();
    let goldens = Goldens::read(&fixtures().join("gguf"));
    let mut failures = Vec::new();
    for ty in types.iter().filter(|ty| !ty.starts_with("OLD-")) {
        let path = fixtures().join(format!("gguf/{ty}.gguf"));
        let golden = goldens.floats(&format!("{ty}.logits"));
        // The golden's own error, against the same in f64, is the natural size of a tolerance.
        let source = Source::find(&path).unwrap();
        let exact = oracle::logits(&source.config().unwrap(), &source.checkpoint(Access::Map).unwrap(), &ids);
        let error = golden.iter().zip(&exact).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max);
        assert!(error < 1e-3, "{ty}: golden and oracle {error:e} apart");
        let mut first: Option<Array2<f32>> = None;
        for backend in Backend::available() {
            for access in [Access::Map, Access::Read] {
                let model = model(ty, access, backend.into());
                let mut recorder = Recorder::default();
                let found = logits(&model, &ids, &[ids.len()], &mut recorder);
                let what = format!("{ty} {backend} {access:?}");
                compare(&mut failures, &what, found.view(), golden.view(), ROUNDINGS * error as f32);
                for n in 0..model.config().layers {
                    let experts = format!("experts.{n}");
                    if recorder.experts[&experts] != goldens.ids(&format!("{ty}.{experts}")) {
                        failures.push(format!("{what} {experts}"));
                    }
                }
                if *first.get_or_insert_with(|| found.clone()) != found {
                    failures.push(format!("{what}: other bits"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_older_layout_gives_the_same_bits() {
    let (types, ids) = files();
    let olds: Vec<_> = types.iter().filter_map(|ty| ty.strip_prefix("OLD-")).collect();
    assert_eq!(olds, ["Q4_0"]);
    for new in olds {
        for activations in [Activations::F32, Activations::Int8] {
            let compute = Compute { backend: Backend::best(), activations };
            let [old, new] = [format!("OLD-{new}"), new.to_owned()]
                .map(|file| logits(&model(&file, Access::Map, compute), &ids, &[5, 11], &mut ()));
            assert_eq!(old, new, "{activations}");
        }
    }
}

/// The root of the mean square of two rows' distances.
fn distance(a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// With int8 activations as llama.cpp has them: how far logits lie from exact ones, beside how far its own do. A token that is sent
/// to other experts is far off for either; medians of rows leave those out of account.
#[test]
fn int8_activations_are_as_close_as_llama_cpps() {
    let (types, ids) = files();
    let goldens = Goldens::read(&fixtures().join("gguf"));
    let (mut log_ratio, mut count) = (0.0, 0);
    for ty in types.iter().filter(|ty| !ty.starts_with("OLD-")) {
        let exact = goldens.floats(&format!("{ty}.logits"));
        let theirs = goldens.floats(&format!("{ty}.llama_cpp"));
        let model =
            model(ty, Access::Map, Compute { backend: Backend::best(), activations: Activations::Int8 });
        if model.products().int8 == 0 {
            assert_eq!(ty, "F16", "no product of integers");
            continue;
        }
        let mut recorder = Recorder::default();
        let ours = logits(&model, &ids, &[ids.len()], &mut recorder);
        let flipped = (0..ids.len()).filter(|&t| {
            (0..model.config().layers).any(|n| {
                let k = model.config().experts_per_token;
                let golden = goldens.ids(&format!("{ty}.experts.{n}"));
                recorder.experts[&format!("experts.{n}")][t * k..][..k] != golden[t * k..][..k]
            })
        });
        let flipped = flipped.count();
        let of = |found: &Array2<f32>| {
            median((0..ids.len()).map(|t| distance(found.row(t), exact.row(t))).collect())
        };
        let (ours, theirs) = (of(&ours), of(&theirs));
        println!(
            "{ty}: median row {ours:.4} from exact, llama.cpp {theirs:.4}; experts of {flipped} tokens flipped"
        );
        log_ratio += (ours / theirs).ln();
        count += 1;
    }
    let mean = (log_ratio / f64::from(count)).exp();
    println!("geometric mean of {count} files: {mean:.3} times llama.cpp's");
    assert!(count == 13 && mean <= 1.05, "{mean}");
}

#[test]
fn rows_of_queries_and_keys_are_in_pairs() {
    let source = Source::find(&fixtures().join("gguf/Q8_0.gguf")).unwrap();
    let (config, checkpoint) = (source.config().unwrap(), source.checkpoint(Access::Map).unwrap());
    let layer = mixtral_model::Manifest::new(&config).layer(1);
    let order = |spec| checkpoint.place(&spec, &config).unwrap().order;
    assert_eq!([layer.q_proj(), layer.k_proj()].map(order), [RowOrder::Pairs; 2]);
    assert_eq!([layer.v_proj(), layer.o_proj(), layer.gate()].map(order), [RowOrder::Halves; 3]);
    let text = serde_json::to_value(checkpoint.layout()).unwrap();
    assert_eq!(text, "gguf-stacked");
}
