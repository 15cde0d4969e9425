//! What a directory or a weight file may hold that is no model of ours, by its name.

use std::fs;
use std::path::Path;

use crate::layout::{ExpertStorage, Layout};
use crate::{Error, Result};

/// Refuses weights of a kind that would otherwise be reported as missing tensors.
pub(super) fn refuse<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    layout: &Layout,
    root: &Path,
) -> Result<()> {
    let error = |expected: &str, found: String| Err(Error::checkpoint(root, expected, found));
    let plain = "weights in f32, f16 or bf16, such as those the model was quantised from, or a GGUF file";
    for (part, kind) in [
        (".qweight", "quantised weights of GPTQ or AWQ"),
        (".qzeros", "quantised weights of GPTQ or AWQ"),
        (".weight.absmax", "quantised weights of bitsandbytes"),
        (".weight.quant_state", "quantised weights of bitsandbytes"),
        (".weight_packed", "quantised weights of compressed-tensors"),
        (".weight_scale_inv", "weights in fp8 with scales"),
        (".weight_scale", "quantised weights with scales"),
        (".scales", "quantised weights with scales, as MLX and GPTQ write"),
    ] {
        if let Some(name) =
            names.clone().find(|name| name.ends_with(part) || name.contains(&format!("{part}.")))
        {
            return error(plain, format!("{kind} ({})", brief(name)));
        }
    }
    if let Some(name) =
        names.clone().find(|name| name.contains(".lora_A.") || name.contains("lora_embedding_A"))
    {
        return error("a model", format!("a LoRA adapter ({}), which changes a model", brief(name)));
    }
    if layout.experts() != ExpertStorage::PerExpert
        || names.clone().any(|name| name.contains(".experts.0.w1."))
    {
        return Ok(());
    }
    for (part, kind) in [
        (".mlp.experts.", "experts of three projections each, as in a model of another family"),
        (".mlp.gate_proj.", "a dense model"),
        (".feed_forward.w1.", "a dense model"),
    ] {
        if let Some(name) = names.clone().find(|name| name.contains(part)) {
            return error("the tensors of a Mixtral", format!("{kind} ({})", brief(name)));
        }
    }
    Ok(())
}

fn brief(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

/// The error for a directory without weights that can be opened: says what there is instead.
pub(super) fn no_weights(dir: &Path) -> Error {
    if dir.is_file() {
        let kind = dir.file_name().and_then(|name| name.to_str()).and_then(describe);
        return Error::checkpoint(dir, "a model directory", kind.unwrap_or("a file"));
    }
    let names = match fs::read_dir(dir) {
        Err(source) => return Error::Io { path: dir.to_path_buf(), source },
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()),
    };
    // The least name, so that the message does not depend on the order of the directory.
    let seen = names.filter_map(|name| Some((describe(&name)?, name))).min();
    let found = seen.map_or_else(|| "no weights".to_owned(), |(kind, name)| format!("{name} ({kind})"));
    let expected =
        "model.safetensors, or model.safetensors.index.json and its shards, or the same of consolidated";
    Error::checkpoint(dir, expected, found)
}

fn describe(name: &str) -> Option<&'static str> {
    if name.ends_with(".gguf") {
        Some("a GGUF file")
    } else if name.starts_with("adapter_model.") {
        Some("a LoRA adapter, which changes a model and is none")
    } else if name.starts_with("consolidated.") {
        Some("the original release's weights in a form that is not read: convert them to safetensors")
    } else if name.starts_with("pytorch_model_fsdp_") || name.ends_with(".distcp") {
        Some("a distributed checkpoint: gather it into safetensors")
    } else if name.starts_with("pytorch_model") && !name.contains(".safetensors")
        || name.ends_with(".pt")
        || name.ends_with(".pth")
    {
        Some("pickled weights, which are programs: convert them to safetensors")
    } else if is_variant(name) {
        Some("weights of a variant: give them or their index such a name")
    } else if name.ends_with(".safetensors") && !name.starts_with('.') {
        Some("safetensors that no index names")
    } else if name.ends_with(".incomplete") || name.ends_with(".part") {
        Some("an unfinished download")
    } else {
        None
    }
}

/// Whether `save_pretrained(variant="fp16")` writes a file of such a name: `model.fp16.safetensors`, a shard
/// `model.fp16-00001-of-00002.safetensors`, `model.safetensors.index.fp16.json`.
fn is_variant(name: &str) -> bool {
    let between = |begin: &str, end: &str| {
        name.strip_prefix(begin)
            .and_then(|rest| rest.strip_suffix(end))
            .is_some_and(|variant| !variant.is_empty())
    };
    between("model.", ".safetensors") || between("model.safetensors.index.", ".json")
}
