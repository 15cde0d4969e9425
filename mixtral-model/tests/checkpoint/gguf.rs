//! GGUF files, healthy and damaged.

use std::fs;
use std::path::{Path, PathBuf};

use mixtral_model::{Access, Checkpoint, Config, Error, Manifest, RopeScaling, Source};
use moe_core::numerics::uniform;
use tempfile::TempDir;

use crate::BOTH;
use crate::gguf_writer::{Gguf, Value};
use crate::writer::config;

/// A file in a directory of its own.
fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Everything that a run reads but the weights' values.
pub(crate) fn load(path: &Path, access: Access) -> Result<(Config, Checkpoint), Error> {
    let source = Source::find(path)?;
    let config = source.config()?;
    let checkpoint = source.checkpoint(access)?;
    assert_eq!(checkpoint.verify(&config)?, [""; 0]);
    source.tokenizer()?;
    Ok((config, checkpoint))
}

fn with(mut config: Config, change: impl FnOnce(&mut Config)) -> Config {
    change(&mut config);
    config
}

/// Loads every file and reports each that is accepted, or whose error lacks one of the words.
fn refuse(cases: impl IntoIterator<Item = (&'static str, Gguf, &'static [&'static str])>) {
    let mut failed = Vec::new();
    for (what, file, words) in cases {
        let (_dir, path) = written(&file.bytes());
        for access in BOTH {
            match load(&path, access) {
                Ok(_) => failed.push(format!("{what}: accepted")),
                Err(error) => {
                    let message = error.to_string();
                    if !message.contains("m.gguf") || words.iter().any(|word| !message.contains(word)) {
                        failed.push(format!("{what}: {message}"));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_healthy_file() {
    let (_dir, path) = written(&Gguf::healthy().bytes());
    let expected = with(config(), |config| (config.bos, config.eos) = (Some(1), vec![2]));
    for access in BOTH {
        let (found, checkpoint) = load(&path, access).unwrap();
        assert_eq!(found, expected);
        checkpoint.check_values().unwrap();
        assert_eq!(checkpoint.layout().to_string(), "GGUF, all experts of a layer in three tensors");
    }
    let source = Source::gguf(&path).unwrap();
    assert_eq!(source.to_string(), format!("GGUF file {}, version 3", path.display()));
    assert_eq!(source.warnings().unwrap(), Vec::<String>::new());
    let tokenizer = source.tokenizer().unwrap();
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [1, 3, 6]);
    // In memory, and named by the directory that has nothing else of a model.
    let bytes = Gguf::healthy().bytes();
    Checkpoint::from_bytes(Path::new("inside"), bytes.into()).unwrap().verify(&expected).unwrap();
    assert_eq!(Source::find(path.parent().unwrap()).unwrap().config().unwrap(), expected);
}

#[test]
fn what_may_vary() {
    let vary = |file: Gguf| load(&written(&file.bytes()).1, Access::Read).map(|(config, _)| config);
    let healthy = Gguf::healthy;
    let plain = vary(healthy()).unwrap();
    for (what, file) in [
        ("version 2", healthy().change(|file| file.version = 2)),
        ("alignment", healthy().set("general.alignment", Value::U32(64)).change(|file| file.alignment = 64)),
        (
            "an array of arrays",
            healthy().set("general.x", Value::Raw(9, [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec())),
        ),
        ("heads by layer", healthy().set("llama.attention.head_count", Value::Ints(vec![2, 2]))),
        ("vocabulary said", healthy().set("llama.vocab_size", Value::U32(10))),
        ("head width said", healthy().set("llama.attention.key_length", Value::U32(4))),
        ("another architecture's name", {
            let renamed = |(key, value): (String, Value)| (key.replace("llama.", "mixtral."), value);
            let file = healthy().set("general.architecture", Value::Text("mixtral"));
            file.change(|file| file.keys = std::mem::take(&mut file.keys).into_iter().map(renamed).collect())
        }),
    ] {
        assert_eq!(vary(file).map_err(|error| error.to_string()), Ok(plain.clone()), "{what}");
    }
    let tied =
        vary(healthy().change(|file| file.tensors.retain(|tensor| tensor.name != "output.weight"))).unwrap();
    assert_eq!(tied, with(plain.clone(), |config| config.tie_embeddings = true));
    let window = vary(healthy().set("llama.attention.sliding_window", Value::U32(5))).unwrap();
    assert_eq!(window, with(plain.clone(), |config| config.sliding_window = Some(5)));
    let linear = healthy()
        .set("llama.rope.scaling.type", Value::Text("linear"))
        .set("llama.rope.scaling.factor", Value::F32(4.0));
    assert_eq!(vary(linear).unwrap().rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let linear = healthy().set("llama.rope.scaling.type", Value::Text("linear"));
    assert_eq!(vary(linear).unwrap().rope_scaling, RopeScaling::None);
    let yarn = healthy()
        .set("llama.rope.scaling.type", Value::Text("yarn"))
        .set("llama.rope.scaling.factor", Value::F32(4.0));
    let yarn = vary(yarn).unwrap().rope_scaling;
    assert!(matches!(yarn, RopeScaling::Yarn { original_max_positions: 16, .. }), "{yarn}");
    let ends = vary(healthy().without("tokenizer.ggml.eos_token_id").without("tokenizer.ggml.bos_token_id"));
    assert_eq!(ends.unwrap(), plain, "sentencepiece's own tokens");
    let base = vary(healthy().without("llama.rope.freq_base")).unwrap();
    assert_eq!(base.rope_theta, 10_000.0);
    let unknown = healthy().set("llama.attention.sinks", Value::U32(4));
    let (_dir, path) = written(&unknown.bytes());
    let warnings = Source::gguf(&path).unwrap().warnings().unwrap();
    assert!(matches!(&warnings[..], [one] if one.contains("llama.attention.sinks")), "{warnings:?}");
}

#[test]
fn headers_that_lie() {
    let healthy = Gguf::healthy;
    const Q: &str = "blk.1.attn_q.weight";
    let of_q = |change: fn(&mut crate::gguf_writer::Tensor)| healthy().tensor(Q, change);
    refuse([
        ("version 1", healthy().change(|file| file.version = 1), &["version 1"][..]),
        ("version 4", healthy().change(|file| file.version = 4), &["version 4"]),
        ("other byte order", healthy().change(|file| file.version = 3 << 24), &["big-endian"]),
        ("2^63 tensors", healthy().change(|file| file.count = Some(1 << 63)), &["tensors"]),
        ("one tensor more", healthy().change(|file| file.count = Some(file.tensors.len() as u64 + 1)), &[]),
        ("2^40 keys", healthy().change(|file| file.key_count = Some(1 << 40)), &["metadata keys"]),
        (
            "a type of values",
            healthy().set("general.x", Value::Raw(13, vec![0; 8])),
            &["general.x", "type 13"],
        ),
        (
            "an array of 2^60",
            healthy().set(
                "general.x",
                Value::Raw(9, [&4u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()].concat()),
            ),
            &["items of arrays"],
        ),
        (
            "arrays nested deep",
            healthy().set(
                "general.x",
                Value::Raw(9, [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(50_000)),
            ),
            &["nested"],
        ),
        (
            "a key twice",
            healthy().change(|file| file.keys.push(("llama.expert_count".to_owned(), Value::U32(3)))),
            &["llama.expert_count", "one value"],
        ),
        ("a tensor twice", healthy().change(|file| file.tensors.push(file.tensors[3].clone())), &["two"]),
        ("alignment 0", healthy().set("general.alignment", Value::U32(0)), &["general.alignment"]),
        ("alignment 3", healthy().set("general.alignment", Value::U32(3)), &["general.alignment"]),
        ("alignment 2^31", healthy().set("general.alignment", Value::U32(1 << 31)), &["general.alignment"]),
        ("no dimensions", of_q(|tensor| tensor.shape.clear()), &[Q]),
        ("five dimensions", of_q(|tensor| tensor.shape = vec![8, 8, 1, 1, 1]), &[Q]),
        ("a dimension of 0", of_q(|tensor| tensor.shape = vec![8, 0]), &[Q]),
        ("a product of 2^64", of_q(|tensor| tensor.shape = vec![1 << 32, 1 << 32]), &[Q]),
        ("transposed", of_q(|tensor| tensor.shape = vec![4, 16]), &[Q, "[8, 8]", "[16, 4]"]),
        ("not where it is", of_q(|tensor| tensor.offset = Some(0)), &[Q, "offset"]),
        ("beyond the end", of_q(|tensor| tensor.offset = Some(1 << 30)), &[Q, "offset"]),
        ("2^64 - 32", of_q(|tensor| tensor.offset = Some(u64::MAX - 31)), &[Q, "offset"]),
        ("no type", of_q(|tensor| tensor.ty = 99), &[Q, "type 99", "Q4_K"]),
        ("a type withdrawn", of_q(|tensor| tensor.ty = 4), &[Q, "type 4", "withdrawn"]),
        ("blocks of 256 in rows of 8", of_q(|tensor| tensor.ty = 12), &[Q, "whole blocks"]),
        ("integers", of_q(|tensor| tensor.ty = 26), &[Q, "I32"]),
    ]);
}

#[test]
fn metadata_that_lie() {
    let healthy = Gguf::healthy;
    let set = |key: &str, value| healthy().set(key, value);
    refuse([
        ("no architecture", healthy().without("general.architecture"), &["general.architecture"][..]),
        (
            "another architecture",
            set("general.architecture", Value::Text("qwen2moe")),
            &["general.architecture", "qwen2moe"],
        ),
        ("a number", set("general.architecture", Value::U32(7)), &["general.architecture"]),
        ("dense", healthy().without("llama.expert_count"), &["llama.expert_count"]),
        ("no experts", set("llama.expert_count", Value::U32(0)), &["llama.expert_count"]),
        ("more experts", set("llama.expert_count", Value::U32(8)), &["ffn_gate_inp", "[8, 8]", "[3, 8]"]),
        (
            "as many numbers of experts as no layers",
            set("llama.expert_count", Value::Ints(vec![3; 3])),
            &["llama.expert_count", "one number for each of 2 layers"],
        ),
        ("more used", set("llama.expert_used_count", Value::U32(4)), &["llama.expert_used_count"]),
        ("more layers", set("llama.block_count", Value::U32(u32::MAX)), &["blk.2."]),
        ("fewer layers", set("llama.block_count", Value::U32(1)), &["blk.1.", "block_count 1"]),
        ("heads as text", set("llama.attention.head_count", Value::Text("4")), &["head_count"]),
        ("heads that differ", set("llama.attention.head_count", Value::Ints(vec![2, 4])), &["head_count"]),
        ("kv heads", set("llama.attention.head_count_kv", Value::U32(3)), &["head_count_kv"]),
        ("epsilon", set("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)), &["epsilon"]),
        ("base 0", set("llama.rope.freq_base", Value::F32(0.0)), &["freq_base"]),
        ("half a rotation", set("llama.rope.dimension_count", Value::U32(2)), &["dimension_count"]),
        (
            "another scaling",
            set("llama.rope.scaling.type", Value::Text("longrope")),
            &["rope.scaling.type", "longrope"],
        ),
        (
            "yarn without a factor",
            set("llama.rope.scaling.type", Value::Text("yarn")),
            &["rope.scaling.factor"],
        ),
        (
            "yarn's factor without yarn",
            set("llama.rope.scaling.attn_factor", Value::F32(1.5)),
            &["rope.scaling.attn_factor"],
        ),
        ("importances", set("general.type", Value::Text("imatrix")), &["general.type", "imatrix"]),
        ("shared experts", set("llama.expert_shared_count", Value::U32(1)), &["expert_shared_count"]),
        ("a scale", set("llama.logit_scale", Value::F32(0.5)), &["logit_scale"]),
        ("no causality", set("llama.attention.causal", Value::Bool(false)), &["causal"]),
        (
            "one of three files",
            set("split.count", Value::U16(3)).set("split.no", Value::U16(0)),
            &["split.count"],
        ),
        (
            "the second file",
            set("split.count", Value::U16(3)).set("split.no", Value::U16(1)),
            &["split.no", "first part"],
        ),
        (
            "tokens as numbers",
            set("tokenizer.ggml.tokens", Value::Ints(vec![0; 10])),
            &["tokenizer.ggml.tokens"],
        ),
        ("few scores", set("tokenizer.ggml.scores", Value::Floats(vec![0.0])), &["tokenizer.ggml.scores"]),
        ("no scores", healthy().without("tokenizer.ggml.scores"), &["tokenizer.ggml.scores"]),
        ("begin token", set("tokenizer.ggml.bos_token_id", Value::U32(10)), &["bos_token_id"]),
        ("byte-level", set("tokenizer.ggml.model", Value::Text("gpt2")), &["tokenizer.ggml.merges"]),
        ("unknown", set("tokenizer.ggml.model", Value::Text("abacus")), &["tokenizer.ggml.model", "abacus"]),
        (
            "a scaling in a tensor",
            healthy().change(|file| {
                let mut factors = file.tensors[1].clone();
                factors.name = "rope_freqs.weight".to_owned();
                file.tensors.push(factors);
            }),
            &["rope_freqs.weight", "RoPE"],
        ),
        (
            "a bias",
            healthy().change(|file| {
                let mut bias = file.tensors[1].clone();
                bias.name = "blk.0.attn_q.bias".to_owned();
                file.tensors.push(bias);
            }),
            &["blk.0.attn_q.bias"],
        ),
    ]);
}

#[test]
fn truncation_at_every_byte() {
    let whole = Gguf::healthy().bytes();
    let data = whole.len()
        - Gguf::healthy().tensors.iter().map(|t| t.bytes.len().next_multiple_of(32)).sum::<usize>();
    // Padding behind the last tensor may be missing.
    let padding = 32 - Gguf::healthy().tensors.last().unwrap().bytes.len() % 32;
    let needed = whole.len() - padding % 32;
    for len in (0..data).chain((data..needed).step_by(7)).chain([needed - 1]) {
        let bytes = bytes::Bytes::copy_from_slice(&whole[..len]);
        if let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("cut"), bytes) {
            panic!("{len} of {} bytes accepted as {checkpoint:?}", whole.len());
        }
    }
    let bytes = bytes::Bytes::copy_from_slice(&whole[..needed]);
    Checkpoint::from_bytes(Path::new("cut"), bytes).unwrap();
}

/// Whatever bytes are changed: an error, or a model whose every tensor lies inside the file.
#[test]
fn random_damage() {
    let whole = Gguf::healthy().bytes();
    let header = whole.len()
        - Gguf::healthy().tensors.iter().map(|t| t.bytes.len().next_multiple_of(32)).sum::<usize>();
    let (dir, path) = written(&whole);
    let mut accepted = 0;
    for round in 0..3000u64 {
        let mut bytes = whole.clone();
        let draw = |n: u64, below: usize| (uniform(round, &[n]) * below as f32) as usize;
        for n in 0..1 + draw(0, 6) as u64 {
            bytes[draw(3 * n + 1, header)] = match draw(3 * n + 2, 4) {
                0 => 0,
                1 => 0xff,
                _ => draw(3 * n + 3, 256) as u8,
            };
        }
        fs::write(&path, &bytes).unwrap();
        let Ok(source) = Source::find(dir.path()) else { continue };
        let _ = source.tokenizer();
        let (Ok(config), Ok(checkpoint)) = (source.config(), source.checkpoint(Access::Read)) else {
            continue;
        };
        if checkpoint.verify(&config).is_err() {
            continue;
        }
        for spec in Manifest::new(&config).tensors() {
            let place = checkpoint.place(&spec, &config).unwrap();
            assert!(place.offset + place.bytes <= bytes.len() as u64, "round {round}: {place:?}");
            checkpoint.matrix(&place).unwrap();
        }
        accepted += 1;
    }
    assert!(accepted > 100, "{accepted}");
}

/// Settings of sampling become those of a generation_config.json; what is not done is said.
#[test]
fn how_tokens_are_chosen() {
    let wishes = |file: Gguf| {
        let (_dir, path) = written(&file.bytes());
        let source = Source::gguf(&path).unwrap();
        (source.generation().unwrap().read().unwrap().sampling, source.warnings().unwrap())
    };
    let set = |key: &str, value| Gguf::healthy().set(&format!("general.sampling.{key}"), value);
    let (greedy, none) = wishes(Gguf::healthy());
    assert_eq!((greedy.temperature, none), (0.0, Vec::new()));
    let (drawn, _) = wishes(set("temp", Value::F32(0.5)).set("general.sampling.top_k", Value::U32(9)));
    assert_eq!((drawn.temperature, drawn.top_k), (0.5, Some(9)));
    let (penalised, _) = wishes(set("penalty_repeat", Value::F32(1.5)));
    assert_eq!((penalised.temperature, penalised.repetition_penalty), (0.0, 1.5));
    let no_limit = Value::Raw(5, (-1i32).to_le_bytes().to_vec());
    assert_eq!(wishes(set("top_k", no_limit)).0, greedy);
    assert_eq!(wishes(set("temp", Value::F32(-1.0))).0, greedy);
    let (_, warnings) = wishes(set("mirostat", Value::U32(2)));
    assert!(matches!(&warnings[..], [one] if one.contains("general.sampling.mirostat")), "{warnings:?}");
    let (suppressed, _) = wishes(Gguf::healthy().set("tokenizer.ggml.suppress_tokens", Value::Ints(vec![4])));
    assert_ne!(suppressed, greedy);
}

/// A tensor that no layer has, but that changes what is computed, is refused as one of a layer is.
#[test]
fn tensors_of_other_models() {
    refuse(["output_norm.bias", "token_embd_norm.weight", "position_embd.weight"].map(|name| {
        let add = |file: &mut Gguf| {
            let mut other = file.tensors[1].clone();
            other.name = name.to_owned();
            file.tensors.push(other);
        };
        (name, Gguf::healthy().change(add), &["only tensors of the Mixtral architecture"][..])
    }));
}
