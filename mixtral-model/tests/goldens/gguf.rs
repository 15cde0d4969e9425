//! Values of the tensors of GGUF files, by the digests of what the `gguf` package makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use moe_kernels::WeightView;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::gguf_file::GgufFile;
use crate::support::fixtures;

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
fn found(file: &GgufFile) -> BTreeMap<String, Facts> {
    let mut hashes: BTreeMap<String, (Facts, Sha256)> = BTreeMap::new();
    for tensor in file.tensors() {
        let ty = tensor.matrix.format().to_string().to_uppercase();
        let part = part_of(tensor.name);
        let (name, shape) = match &part {
            Some((whole, _)) => (whole.as_str(), [tensor.shape, &[0]].concat()),
            None => (tensor.name, tensor.shape.to_vec()),
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
        hash(tensor.matrix, sha256);
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
        let (found, expected) = (found(&GgufFile::read(&dir.join(file))), expected(files, file));
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
