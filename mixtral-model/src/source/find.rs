//! From what a user writes to a model.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Source, hub, is_there, no_model};
use crate::input::open_regular;
use crate::{Error, Result, gguf};

pub(super) fn find(name: &Path) -> Result<Source> {
    match fs::metadata(name) {
        Ok(metadata) if metadata.is_dir() => in_directory(name),
        Ok(_) => of_file(name),
        Err(source) => match hub::within(name) {
            Some(hub::Within { folder, part: None }) => in_directory(&folder),
            Some(hub::Within { folder, part: Some(part) }) => in_repository(&folder, &part),
            None if fs::symlink_metadata(name).is_ok() => Err(Error::Io { path: name.to_path_buf(), source }),
            None => {
                let found = match hub::is_repository_name(name) {
                    true => {
                        // The type of a GGUF file is no part of the repository's name.
                        let shown = name.display().to_string();
                        let repository = shown.split(':').next().unwrap_or_default();
                        let cache =
                            hub::caches().map_or_else(String::new, |cache| format!(" ({})", cache.display()));
                        format!(
                            "neither it nor a repository of that name in the hub's local cache{cache}; nothing is \
                             downloaded, but `hf download {repository}` puts it there"
                        )
                    }
                    false => "nothing of that name; nothing is downloaded".to_owned(),
                };
                Err(Error::checkpoint(name, "a model directory or a GGUF file", found))
            }
        },
    }
}

fn in_directory(dir: &Path) -> Result<Source> {
    if ["config.json", "params.json"].into_iter().any(|name| is_there(dir, name)) {
        // Repositories of GGUF files often have the config of the model that they were made from.
        return match &gguf_files(dir)?[..] {
            [file] if !has_safetensors(dir) => Source::gguf(&dir.join(file)),
            _ => Ok(Source::directory(dir)),
        };
    }
    if let Some(snapshot) = hub::snapshot(dir)? {
        return in_directory(&snapshot);
    }
    let files = gguf_files(dir)?;
    match &files[..] {
        [file] => Source::gguf(&dir.join(file)),
        [] if is_there(dir, "adapter_config.json") || !has_weights(dir) => Err(no_model(dir)),
        [] => Ok(Source::directory(dir)),
        [first, rest @ ..] => {
            let found = format!("{} of them, {first} the first: name one", rest.len() + 1);
            Err(Error::checkpoint(dir, "config.json, params.json or one GGUF file", found))
        }
    }
}

/// What a user names of a repository in the cache.
fn in_repository(folder: &Path, part: &hub::Part) -> Result<Source> {
    let dir = hub::snapshot(folder)?.unwrap_or_else(|| folder.to_path_buf());
    match part {
        hub::Part::Path(path) => {
            let path = dir.join(path);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => in_directory(&path),
                Ok(_) => of_file(&path),
                Err(source) => Err(Error::Io { path, source }),
            }
        }
        hub::Part::Type(wanted) => {
            // Large ones have a folder each.
            let mut files: Vec<_> = gguf_files(&dir)?.into_iter().map(|name| dir.join(name)).collect();
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if entry.is_dir() {
                    files.extend(gguf_files(&entry)?.into_iter().map(|name| entry.join(name)));
                }
            }
            let is_wanted = |path: &&PathBuf| {
                path.file_name().is_some_and(|name| is_of_type(&name.to_string_lossy(), wanted))
            };
            let fitting: Vec<_> = files.iter().filter(is_wanted).collect();
            match &fitting[..] {
                [file] => Source::gguf(file),
                _ => {
                    let within = |file: &PathBuf| {
                        file.strip_prefix(&dir).unwrap_or(file).to_string_lossy().into_owned()
                    };
                    let names: Vec<_> = files.iter().take(20).map(within).collect();
                    let found = format!("{} such among: {}", fitting.len(), names.join(", "));
                    Err(Error::checkpoint(&dir, format!("one GGUF file whose name says {wanted}"), found))
                }
            }
        }
    }
}

/// Whether the name of a GGUF file ends in a whole type, as `model.Q4_K_M.gguf` and `model-q4_k_m-00001-of-00002.gguf` do.
fn is_of_type(name: &str, wanted: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let Some(stem) = name.strip_suffix(".gguf") else { return false };
    let whole = stem.rsplit_once("-of-").and_then(|(part, _)| Some(part.rsplit_once('-')?.0));
    let before = whole.unwrap_or(stem).strip_suffix(&wanted.to_ascii_lowercase());
    // Types have underscores themselves, so that what follows one is a type only if it begins as one.
    let begins = ["q", "iq", "tq", "f16", "f32", "bf16", "mxfp"];
    let is_type = begins.iter().any(|begin| wanted.to_ascii_lowercase().starts_with(begin));
    before.is_some_and(|before| before.ends_with(['.', '-']) || before.ends_with('_') && is_type)
}

/// Whether there are weights or a tokenizer that a config is missing for.
fn has_weights(dir: &Path) -> bool {
    has_safetensors(dir)
        || ["tokenizer.model", "tokenizer.json", "tekken.json"].into_iter().any(|name| is_there(dir, name))
}

fn has_safetensors(dir: &Path) -> bool {
    ["model", "consolidated"].into_iter().any(|name| {
        is_there(dir, &format!("{name}.safetensors"))
            || is_there(dir, &format!("{name}.safetensors.index.json"))
    })
}

fn of_file(path: &Path) -> Result<Source> {
    use std::io::Read;
    let (file, _) = open_regular(path)?;
    let mut start = Vec::new();
    let read = file.take(gguf::MAGIC.len() as u64).read_to_end(&mut start);
    read.map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    if start == gguf::MAGIC
        || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    {
        return Source::gguf(path);
    }
    Err(Error::checkpoint(path, "a model directory or a GGUF file", "a file of another kind".to_owned()))
}

/// The GGUF files of a directory, ascending, of split models the first parts only.
fn gguf_files(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names
        .filter(|name| name.ends_with(".gguf") && !name.starts_with('.') && !is_later_part(name))
        .collect();
    names.sort();
    Ok(names)
}

/// Whether a name ends as that of the second or a later part of a model does: `-00002-of-00003.gguf`.
fn is_later_part(name: &str) -> bool {
    let parts = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let number = parts.and_then(|(stem, count)| {
        let (_, number) = stem.rsplit_once('-')?;
        count.parse::<u32>().ok()?;
        number.parse::<u32>().ok()
    });
    number.is_some_and(|number| number > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_model() {
        for (name, later) in [
            ("m-00001-of-00003.gguf", false),
            ("m-00002-of-00003.gguf", true),
            ("m.gguf", false),
            ("two-of-us.gguf", false),
            ("m-2-of-x.gguf", false),
        ] {
            assert_eq!(is_later_part(name), later, "{name}");
        }
    }

    #[test]
    fn types_in_names() {
        for (name, wanted, is) in [
            ("mixtral-8x7b-v0.1.Q4_K_M.gguf", "Q4_K_M", true),
            ("mixtral-8x7b-v0.1.Q4_K_M.gguf", "q4_k_m", true),
            ("mixtral_q4_k_m.gguf", "Q4_K_M", true),
            ("Mixtral-q8_0-00001-of-00002.gguf", "Q8_0", true),
            ("mixtral.Q4_K_M.gguf", "K_M", false),
            ("mixtral.Q6_K.gguf", "K", false),
            ("mixtral.IQ4_XS.gguf", "Q4_XS", false),
            ("mixtral.Q4_K_S.gguf", "Q4_K_M", false),
            ("Q4_K_M.gguf", "Q4_K_M", false),
            ("mixtral.Q4_K_M.bin", "Q4_K_M", false),
        ] {
            assert_eq!(is_of_type(name, wanted), is, "{name} {wanted}");
        }
    }
}
