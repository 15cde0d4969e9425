//! The two forms of what `mixtral route` reads.

use std::fs;

use serde_json::{Value, json};

use crate::route::{route, routed};
use crate::run;

/// A safetensors file of little-endian tensors.
fn tensors(list: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, dtype, shape, bytes) in list {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

#[test]
fn safetensors_are_json_in_another_form() {
    let logits = [[0.5f32, -1.0, 2.0], [0.25, 0.5, -4.0]];
    let numbers = logits.as_flattened();
    let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let f16s: Vec<u8> = numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let bf16s: Vec<u8> = numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let ids: Vec<u8> = [7i64, 9].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bias: Vec<u8> = [0.0f32, 1.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let content = json!({"logits": logits, "token_ids": [7, 9], "mask": [1, 0], "bias": [0, 1, 0]});
    let expected = routed(&content, "capped(afmoe:k=1):factor=1.0");
    let f64s: Vec<u8> = numbers.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    let wide_bias: Vec<u8> = [0.0f64, 1.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let short_ids: Vec<u8> = [7i32, 9].iter().flat_map(|x| x.to_le_bytes()).collect();
    for (dtype, data, of_bias, bias, of_ids, ids) in [
        ("F64", f64s, "F64", &wide_bias, "U64", &ids),
        ("F32", f32s.clone(), "F32", &bias, "I64", &ids),
        ("F16", f16s, "F64", &wide_bias, "I32", &short_ids),
        ("BF16", bf16s, "F32", &bias, "U32", &short_ids),
    ] {
        let file = tensors(&[
            ("logits", dtype, &[2, 3], data),
            ("token_ids", of_ids, &[2], ids.clone()),
            ("mask", "U8", &[2], vec![1, 0]),
            ("bias", of_bias, &[3], bias.clone()),
        ]);
        let said = route(&file, "capped(afmoe:k=1):factor=1.0");
        assert_eq!(said.status, Some(0), "{}", said.err);
        assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap(), expected, "{dtype}");
    }
}

/// Everything that may come with logits, and a router that looks at it.
#[test]
fn everything_that_may_come_with_logits() {
    let noise = [[0.5f32, -1.5, 0.25], [0.75, -0.5, 2.0], [-3.0, 0.5, 0.125]];
    let content = json!({
        "logits": [[0.5, -1.0, 2.0], [0.25, 0.5, -4.0], [1.0, 1.5, 1.25]],
        "positions": [4, 5, 1], "sequences": [2, 1], "sequence_ids": [8, 18446744073709551615u64],
        "mask": [1, 1, 0], "noise": noise, "noise_logits": noise,
    });
    let f32s = |list: &Value| -> Vec<u8> {
        let rows = list.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
        rows.flat_map(|x| (x.as_f64().unwrap() as f32).to_le_bytes()).collect()
    };
    let i64s = |list: &Value| -> Vec<u8> {
        list.as_array().unwrap().iter().flat_map(|x| x.as_u64().unwrap().to_le_bytes()).collect()
    };
    let all = [
        ("logits", "F32", &[3usize, 3][..], f32s(&content["logits"])),
        ("positions", "I64", &[3], i64s(&content["positions"])),
        ("sequences", "I64", &[2], i64s(&content["sequences"])),
        ("sequence_ids", "U64", &[2], i64s(&content["sequence_ids"])),
        ("mask", "BOOL", &[3], vec![1, 1, 0]),
        ("noise", "F32", &[3, 3], f32s(&content["noise"])),
        ("noise_logits", "F32", &[3, 3], f32s(&content["noise_logits"])),
    ];
    // What changes where a part is left out: draws without noise, capacities without sequences or mask.
    let drawn = "capped(gaussian-noise(top-k:k=2):std=1.0):factor=1.0,rounding=down,min=1";
    let learned = "learned-noise(top-k:k=2)";
    for (without, router, differs) in [
        ("", drawn, false),
        ("", learned, false),
        ("noise", drawn, true),
        ("noise", learned, true),
        ("noise_logits", drawn, false),
        ("sequences", drawn, true),
        ("mask", drawn, true),
    ] {
        let kept = |name: &str| name != without && !(without == "sequences" && name == "sequence_ids");
        let mut json = content.clone();
        json.as_object_mut().unwrap().retain(|name, _| kept(name));
        let list: Vec<_> = all.iter().filter(|tensor| kept(tensor.0)).cloned().collect();
        let said = route(&tensors(&list), router);
        assert_eq!(said.status, Some(0), "{without}: {}", said.err);
        let found: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(found, routed(&json, router), "without {without:?}: {router}");
        assert_eq!(found != routed(&content, router), differs, "without {without:?}: {router}");
    }
    // Where noise is drawn, place and identity of a sequence are what it is drawn for.
    let mut drawn_for = content.clone();
    drawn_for.as_object_mut().unwrap().remove("noise");
    for (name, other) in [("positions", json!([4, 6, 1])), ("sequence_ids", json!([9, 1]))] {
        let mut changed = drawn_for.clone();
        changed[name] = other;
        let weights = |content| routed(content, "gaussian-noise(dense):std=1.0")["assignments"].clone();
        assert_ne!(weights(&changed), weights(&drawn_for), "{name}");
    }
    let said = run("route --help", &[]);
    for (name, ..) in &all {
        assert!(said.out.contains(&format!("  {name} ")), "{name} is not in the help");
    }
}

#[test]
fn what_is_wrong_with_a_tensor() {
    let ones: Vec<u8> = [1.0f32; 6].iter().flat_map(|x| x.to_le_bytes()).collect();
    let whole = |list: &[i64]| list.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    type Tensor<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);
    let logits: Tensor<'_> = ("logits", "F32", &[2, 3], ones.clone());
    let alone: [(Vec<u8>, &str); 5] = [
        (tensors(&[("x", "F32", &[2, 3], ones.clone())]), "expected a tensor logits, found x"),
        (tensors(&[("logits", "F32", &[6], ones.clone())]), "expected shape [tokens, experts], found [6]"),
        (
            tensors(&[("logits", "I32", &[2, 3], ones.clone())]),
            "logits: expected F64, F32, F16 or BF16, found I32",
        ),
        (tensors(&[("logits", "F32", &[0, 3], vec![])]), "expected at least one token and one expert"),
        (tensors(std::slice::from_ref(&logits))[..40].to_vec(), "eader"),
    ];
    let wide = |list: &[f64]| list.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let too_great = tensors(&[("logits", "F64", &[2, 2], wide(&[1.0, f64::NEG_INFINITY, -1e39, 0.0]))]);
    let too_great = (too_great, "logits: row 1, column 0: expected a number of f32, found -1e39");
    let beside: [(Tensor<'_>, &str); 22] = [
        (
            ("token_ids", "U64", &[2], whole(&[1, -1])),
            "token_ids: entry 1: expected 0 or more, below 2^32, found 18446744073709551615",
        ),
        (
            ("token_ids", "BOOL", &[2], vec![0, 1]),
            "token_ids: expected I64, U64, I32, U32, I16, U16, I8 or U8, found BOOL",
        ),
        (
            ("mask", "F32", &[2], ones[..8].to_vec()),
            "mask: expected BOOL, I64, U64, I32, U32, I16, U16, I8 or U8, found F32",
        ),
        (
            ("bias", "F64", &[3], wide(&[0.0, 1.0, 1e300])),
            "bias: entry 2: expected a number of f32, found 1e300",
        ),
        (
            ("noise", "F64", &[2, 1], wide(&[0.0, -1e300])),
            "noise: row 1, column 0: expected a number of f32, found -1e300",
        ),
        (
            ("token_ids", "I64", &[2], whole(&[1, -1])),
            "token_ids: entry 1: expected 0 or more, below 2^32, found -1",
        ),
        (
            ("token_ids", "I64", &[2], whole(&[1 << 32, 1])),
            "token_ids: entry 0: expected 0 or more, below 2^32, found 4294967296",
        ),
        (
            ("token_ids", "F32", &[2], ones[..8].to_vec()),
            "token_ids: expected I64, U64, I32, U32, I16, U16, I8 or U8, found F32",
        ),
        (
            ("positions", "I64", &[3], whole(&[1, 2, 3])),
            "positions: expected 2 entries, one a token, found 3",
        ),
        (("positions", "I64", &[2], whole(&[0, i64::MIN])), "positions: entry 1: expected 0 or more"),
        (
            ("positions", "I64", &[1, 2], whole(&[0, 1])),
            "positions: expected one number a token, found shape [1, 2]",
        ),
        (
            ("sequences", "I64", &[2], whole(&[1, 2])),
            "sequences: expected lengths that sum to the 2 tokens, found a sum of 3",
        ),
        (
            ("sequences", "I64", &[2], whole(&[i64::MAX, i64::MAX])),
            "sequences: expected lengths that sum to the 2",
        ),
        (
            ("sequences", "I64", &[2], whole(&[3, -1])),
            "sequences: entry 1: expected 0 or more, below 2^64, found -1",
        ),
        (
            ("sequences", "F32", &[2], ones[..8].to_vec()),
            "sequences: expected I64, U64, I32, U32, I16, U16, I8 or U8, found F32",
        ),
        (
            ("sequence_ids", "I64", &[2], whole(&[1, 1])),
            "sequence_ids: expected 1 entries, one a sequence, found 2",
        ),
        (
            ("mask", "U8", &[2], vec![1, 2]),
            "mask: entry 1: expected 1 for a real token, 0 for padding, found 2",
        ),
        (("bias", "F32", &[2], ones[..8].to_vec()), "bias: expected 3 entries, one an expert, found 2"),
        (("noise", "F32", &[6], ones.clone()), "noise: expected shape [tokens, columns], found [6]"),
        (("noise", "I64", &[2, 1], whole(&[1, 2])), "noise: expected F64, F32, F16 or BF16, found I64"),
        (("noise", "F32", &[3, 2], ones.clone()), "noise: expected 2 rows of some columns, found [3, 2]"),
        (("noise_logits", "F32", &[3, 2], ones.clone()), "noise_logits: expected [2, 3], found [3, 2]"),
    ];
    let beside = beside.map(|(tensor, message)| (tensors(&[logits.clone(), tensor]), message));
    let noise = tensors(&[logits, ("noise", "F32", &[2, 2], ones[..16].to_vec())]);
    let columns = (noise, "noise: expected 3 numbers a token, found 2");
    for (file, message) in alone.into_iter().chain(beside).chain([columns, too_great]) {
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), file).unwrap();
        let path = path.path().to_str().unwrap();
        let said = run("route --logits {} --router jitter(relu):epsilon=0.5", &[path]);
        let told = said.err.contains(path) && said.err.contains(message);
        assert!(said.status == Some(1) && told, "{message}: {said:?}");
    }
}

/// Readers differ in which of two tensors of one name they take.
#[test]
fn a_tensor_twice_is_refused() {
    let entry = |begin: usize| json!({"dtype": "F32", "shape": [1, 2], "data_offsets": [begin, begin + 8]});
    // Spelled otherwise it is the same name.
    for twice in ["logits", "log\\u0069ts"] {
        let header = format!("{{\"logits\":{},\"{twice}\":{}}}", entry(0), entry(8));
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat();
        let said = route(&file, "top-k:k=1");
        assert_eq!(said.status, Some(1), "{}", said.out);
        let expected = ": logits: expected one tensor of this name, found several\n";
        assert!(said.err.ends_with(expected), "{}", said.err);
    }
}

#[test]
fn other_forms_are_named() {
    let npy = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
    let hdf5 = b"\x89HDF\r\n\x1a\n\0";
    for (start, name) in [(&npy[..], "NumPy (.npy)"), (b"PK\x03\x04\x14", ".npz"), (&hdf5[..], "HDF5")] {
        let said = route(start, "top-k:k=1");
        assert_eq!(said.status, Some(1), "{}", said.out);
        assert!(
            said.err.contains("expected JSON or safetensors, found ") && said.err.contains(name),
            "{}",
            said.err
        );
        assert!(said.err.contains("safetensors.numpy.save_file({\"logits\": array}, name)"), "{}", said.err);
    }
}
