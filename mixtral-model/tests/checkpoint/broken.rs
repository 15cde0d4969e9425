//! Checkpoints that must be refused, each with an error that says where and what.

use std::fs;
use std::path::Path;

use mixtral_model::{Access, Checkpoint, Config, Error};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::BOTH;
use crate::writer::{Model, config_json, encode, tensors};

const INDEX: &str = "model.safetensors.index.json";
const Q0: &str = "model.layers.0.self_attn.q_proj.weight";

fn load(dir: &Path, access: Access) -> Result<(), Error> {
    let config = Config::from_dir(dir)?;
    let checkpoint = Checkpoint::open(dir, access)?;
    checkpoint.verify(&config)?;
    checkpoint.check_values()
}

/// Loads every model both ways and reports each that is accepted, or whose error lacks one of the words.
fn refuse(cases: impl IntoIterator<Item = (&'static str, Model, &'static [&'static str])>) {
    let mut failed = Vec::new();
    for (what, model, words) in cases {
        for access in BOTH {
            match load(model.dir(), access) {
                Ok(()) => failed.push(format!("{what}: accepted")),
                Err(error) => {
                    let message = error.to_string();
                    if words.iter().any(|word| !message.contains(word)) {
                        failed.push(format!("{what}: {message}"));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn with_config(changes: Value) -> Model {
    let mut config = config_json();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    Model::single().file("config.json", config.to_string().as_bytes())
}

fn header(text: &str, data: &[u8]) -> Model {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(data);
    Model::with_config().file("model.safetensors", &bytes)
}

#[test]
fn healthy_models_load() {
    for access in BOTH {
        load(Model::single().dir(), access).unwrap();
        load(Model::sharded().dir(), access).unwrap();
    }
}

#[test]
fn configs_that_contradict_the_weights() {
    refuse([
        (
            "zero experts",
            with_config(json!({"num_local_experts": 0})),
            &["config.json", "num_local_experts"][..],
        ),
        (
            "k above experts",
            with_config(json!({"num_experts_per_tok": 4})),
            &["config.json", "num_experts_per_tok"],
        ),
        ("window 0", with_config(json!({"sliding_window": 0})), &["config.json", "sliding_window"]),
        (
            "more experts",
            with_config(json!({"num_local_experts": 4})),
            &["block_sparse_moe.gate", "[4, 8]", "[3, 8]"],
        ),
        ("10^9 layers", with_config(json!({"num_hidden_layers": 1_000_000_000})), &["model.layers.2."]),
        (
            "fewer layers",
            with_config(json!({"num_hidden_layers": 1})),
            &["model.layers.1.", "num_hidden_layers 1"],
        ),
        (
            "larger vocabulary",
            with_config(json!({"vocab_size": 11})),
            &["model.embed_tokens", "[11, 8]", "[10, 8]"],
        ),
    ]);
}

#[test]
fn tensors_that_are_wrong() {
    let change = |name: &'static str, change: fn(&mut crate::writer::Tensor)| {
        Model::single().change(|tensors| change(tensors.get_mut(name).unwrap()))
    };
    let extra = |name: &'static str| {
        Model::single().change(|tensors| {
            let copy = tensors["model.norm.weight"].clone();
            tensors.insert(name.to_owned(), copy);
        })
    };
    refuse([
        ("missing", Model::single().change(|t| drop(t.remove(Q0))), &[Q0, "no such tensor"][..]),
        (
            "transposed",
            change("model.layers.1.block_sparse_moe.experts.2.w2.weight", |t| t.shape.reverse()),
            &["model.safetensors", "experts.2.w2", "expected shape [8, 6], found [6, 8]"],
        ),
        ("integers", change(Q0, |t| t.dtype = Dtype::I16), &[Q0, "BF16", "I16"]),
        (
            "nan",
            change("model.layers.0.block_sparse_moe.gate.weight", |t| {
                t.data[10..12].copy_from_slice(&[0xc0, 0xff])
            }),
            &["gate", "finite", "NaN", "element 5"],
        ),
        (
            "infinity",
            change("model.norm.weight", |t| t.data[14..].copy_from_slice(&[0x80, 0xff])),
            &["model.norm", "-inf", "element 7"],
        ),
        (
            "fourth expert",
            extra("model.layers.0.block_sparse_moe.experts.3.w1.weight"),
            &["num_local_experts 3"],
        ),
        ("bias", extra("model.layers.0.self_attn.q_proj.bias"), &["q_proj.bias"]),
        ("control characters", extra("model.layers.0.\u{1b}[2J"), &["\\u{1b}"]),
    ]);
}

#[test]
fn headers_that_lie() {
    let entry = |rest: &str| format!("{{\"{Q0}\":{{{rest}}}}}");
    let ok = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
    let twice = format!("{{\"{Q0}\":{{{ok}}},\"{Q0}\":{{{ok}}}}}");
    let nearly = usize::MAX / 8;
    let huge: Vec<_> = (0..8)
        .map(|n| {
            let (begin, end) = (n * nearly, (n + 1) * nearly);
            format!("\"t{n}\":{{\"dtype\":\"U8\",\"shape\":[{nearly}],\"data_offsets\":[{begin},{end}]}}")
        })
        .collect();
    let deep = format!("{ok},\"x\":{}{}", "[".repeat(100_000), "]".repeat(100_000));
    refuse([
        ("no such tensor in a good header", header(&entry(ok), &[0; 8]), &["embed_tokens"][..]),
        ("twice", header(&twice, &[0; 8]), &[Q0, "one entry"]),
        ("trailing bytes", header(&entry(ok), &[0; 9]), &["expected 8 bytes of data, found 9"]),
        ("ends near 2^64", header(&format!("{{{}}}", huge.join(",")), &[0; 8]), &["model.safetensors"]),
        ("nested", header(&entry(&deep), &[0; 8]), &["unknown field"]),
        ("no object", header("[]", &[]), &["model.safetensors"]),
        ("no tensors", header("{}", &[]), &["embed_tokens"]),
        (
            "overlap",
            header(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                &[0; 6],
            ),
            &["b:", "bytes 2 to 6"],
        ),
        (
            "product 2^64",
            header(&entry(r#""dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]"#), &[]),
            &[Q0],
        ),
        ("reversed", header(&entry(r#""dtype":"U8","shape":[0],"data_offsets":[8,0]"#), &[0; 8]), &[Q0]),
        (
            "length 2^63",
            Model::with_config().file("model.safetensors", &[0, 0, 0, 0, 0, 0, 0, 128, 123]),
            &["header"],
        ),
    ]);
}

#[test]
fn files_of_other_kinds_and_layouts() {
    let renamed = |from: &str, to: &str| {
        let all = tensors().into_iter().map(|(name, tensor)| (name.replace(from, to), tensor)).collect();
        Model::with_config().file("model.safetensors", &encode(&all))
    };
    let name = "model.safetensors";
    refuse([
        ("nothing", Model::with_config(), &[INDEX, "no weights"][..]),
        ("pickled", Model::with_config().file("pytorch_model.bin", b"PK"), &["pytorch_model.bin", "pickled"]),
        (
            "not pickled",
            Model::with_config().file("pytorch_model.safetensors", b"PK"),
            &["pytorch_model.safetensors", "safetensors that no index names"],
        ),
        (
            "distributed",
            Model::with_config().file("pytorch_model_fsdp_0", b"").file("__0_0.distcp", b"PK"),
            &["distributed checkpoint"],
        ),
        (
            "variant",
            Model::with_config().file("model.fp16.safetensors", b""),
            &["model.fp16.safetensors", "a variant"],
        ),
        (
            "variant in shards",
            Model::with_config()
                .file("model.fp16-00001-of-00002.safetensors", b"")
                .file("model.safetensors.index.fp16.json", b"{}"),
            &["model.fp16-00001-of-00002.safetensors", "a variant"],
        ),
        ("gguf beside", Model::with_config().file("m.gguf", b"GGUF"), &["m.gguf"]),
        ("no index", Model::sharded().without(INDEX), &["index.json", "a.safetensors"]),
        ("gguf inside", Model::with_config().file(name, b"GGUF\x03\0\0\0\0\0"), &["GGUF"]),
        (
            "pointer",
            Model::with_config().file(name, b"version https://git-lfs.github.com/spec/v1\n"),
            &["LFS"],
        ),
        (
            "fused in name only",
            renamed("block_sparse_moe.experts", "mlp.experts.gate_up_proj"),
            &["gate_up_proj"],
        ),
        ("half consolidated", renamed("self_attn.q_proj", "attention.wq"), &["self_attn.q_proj"]),
        (
            "another family",
            renamed("block_sparse_moe.experts.0.w1", "mlp.experts.0.gate_proj"),
            &["another family", "mlp.experts"],
        ),
        ("gptq", renamed("q_proj.weight", "q_proj.qweight"), &["GPTQ", "q_proj.qweight", "GGUF"]),
        ("bitsandbytes", renamed("v_proj.weight", "v_proj.weight.absmax"), &["bitsandbytes"]),
        ("fp8", renamed("v_proj.weight", "v_proj.weight_scale_inv"), &["fp8"]),
        ("no config", Model::single().without("config.json"), &["config.json"]),
    ]);
}

#[test]
fn a_file_in_place_of_the_directory() {
    let model = Model::single().file("m.gguf", b"GGUF");
    for (name, found) in [("m.gguf", "a GGUF file"), ("config.json", "a file")] {
        let error = Checkpoint::open(&model.path(name), Access::Map).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{name}: expected a model directory, found {found}")), "{error}");
    }
}

#[test]
fn indexes_that_lie() {
    let outside = tempfile::tempdir().unwrap();
    let stranger = outside.path().join("a.safetensors");
    fs::write(&stranger, encode(&tensors())).unwrap();
    let remap = |shard: Value| Model::sharded().remap(Q0, shard);
    let copied = {
        let model = Model::sharded();
        let mut all = tensors();
        all.values_mut().for_each(|tensor| tensor.data[0] ^= 1);
        model.file("b.safetensors", &encode(&all))
    };
    // A tensor mapped twice, whether or not both say the same, and the map itself twice.
    let doubled = |tensor: &str, shard: &str| {
        let model = Model::sharded();
        let text = fs::read_to_string(model.path(INDEX)).unwrap();
        let twice =
            text.replacen("{\"weight_map\":{", &format!("{{\"weight_map\":{{\"{tensor}\":\"{shard}\","), 1);
        assert_ne!(text, twice);
        model.file(INDEX, twice.as_bytes())
    };
    let two_maps = {
        let model = Model::sharded();
        let text = fs::read_to_string(model.path(INDEX)).unwrap();
        model.file(INDEX, text.replacen('{', "{\"weight_map\":{},", 1).as_bytes())
    };
    refuse([
        ("twice, to two", doubled(Q0, "b.safetensors"), &[INDEX, Q0, "twice"][..]),
        ("twice, to one", doubled(Q0, "a.safetensors"), &[INDEX, Q0, "twice"]),
        ("two maps", two_maps, &[INDEX, "weight_map", "twice"]),
        ("up", remap(json!("../a.safetensors")), &[INDEX, Q0, "beside or below", "../a.safetensors"]),
        ("absolute", remap(json!(stranger.to_str().unwrap())), &[INDEX, Q0, "beside or below"]),
        ("below and up", remap(json!("part/../../a.safetensors")), &[INDEX, Q0, "beside or below"]),
        ("below, not there", remap(json!("part/a.safetensors")), &["part/a.safetensors"]),
        ("dot", remap(json!("./a.safetensors")), &[INDEX, Q0]),
        ("dots", remap(json!("..")), &[INDEX, Q0]),
        ("backslash", remap(json!("..\\a.safetensors")), &[INDEX, Q0]),
        ("nul", remap(json!("a\0b")), &[INDEX, Q0]),
        ("empty", remap(json!("")), &[INDEX, Q0]),
        ("number", remap(json!(2)), &[INDEX, Q0]),
        ("other shard", remap(json!("a.safetensors")), &["b.safetensors", Q0, "it in a.safetensors"]),
        (
            "not there",
            Model::sharded().remap("model.ghost", json!("a.safetensors")),
            &["a.safetensors", "model.ghost"],
        ),
        ("missing shard", Model::sharded().without("b.safetensors"), &["b.safetensors"]),
        ("config as shard", remap(json!("config.json")), &["config.json"]),
        ("copied", copied, &["b.safetensors", "it in a.safetensors"]),
        ("no map", Model::sharded().index(Value::Null), &[INDEX, "weight_map"]),
        ("empty map", Model::sharded().index(json!({})), &[INDEX, "weight_map"]),
        ("no JSON", Model::sharded().file(INDEX, b"{"), &[INDEX]),
    ]);
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    use std::os::unix::fs::symlink;
    let device = |name: &str| {
        let model = Model::sharded();
        let path = model.path(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        symlink("/dev/zero", path).unwrap();
        model
    };
    let directory = Model::with_config();
    fs::create_dir(directory.path("model.safetensors")).unwrap();
    let pipe = Model::with_config();
    let made = std::process::Command::new("mkfifo").arg(pipe.path("model.safetensors")).status();
    assert!(made.unwrap().success());
    let dangling = Model::with_config();
    symlink("gone", dangling.path("model.safetensors")).unwrap();
    refuse([
        ("device", device("model.safetensors"), &["model.safetensors", "a regular file"][..]),
        ("shard", device("a.safetensors"), &["a.safetensors", "a regular file"]),
        ("config", device("config.json"), &["config.json", "a regular file"]),
        (
            "generation config",
            device("generation_config.json"),
            &["generation_config.json", "a regular file"],
        ),
        ("index", device(INDEX), &["index.json", "a regular file"]),
        ("directory", directory, &["model.safetensors", "a directory"]),
        ("pipe", pipe, &["model.safetensors", "a pipe"]),
        ("dangling", dangling, &["model.safetensors"]),
    ]);
}

#[test]
fn truncation_at_every_byte() {
    let whole = encode(&tensors());
    for len in 0..whole.len() {
        let bytes = bytes::Bytes::copy_from_slice(&whole[..len]);
        match Checkpoint::from_bytes(Path::new("cut"), bytes) {
            Err(error) => assert!(error.to_string().starts_with("cut: "), "{len}: {error}"),
            Ok(_) => panic!("{len} of {} bytes accepted", whole.len()),
        }
    }
    let model = Model::single();
    let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for len in [0, 1, 7, 8, 9, data / 2, data - 1, data, data + 1, whole.len() - 1] {
        fs::write(model.path("model.safetensors"), &whole[..len]).unwrap();
        for access in BOTH {
            assert!(Checkpoint::open(model.dir(), access).is_err(), "{len}");
        }
    }
}

/// What is accepted after damage to a header, the `safetensors` crate accepts too, with the same ranges.
#[test]
fn damaged_headers_are_not_read_more_kindly_than_elsewhere() {
    let whole = encode(&tensors());
    let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut accepted = 0;
    for at in 0..data {
        for replacement in *b"019\",:[]{} F" {
            let mut bytes = whole.clone();
            bytes[at] = replacement;
            let Ok(ours) = Checkpoint::from_bytes(Path::new("damaged"), bytes.clone().into()) else {
                continue;
            };
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(ours.entries().len(), theirs.len());
            for entry in ours.entries() {
                let view = theirs.tensor(entry.name).unwrap();
                assert_eq!((entry.shape, entry.bytes), (view.shape(), view.data().len() as u64));
            }
            accepted += 1;
        }
    }
    assert!(accepted > 0);
}
