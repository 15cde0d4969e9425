//! The sampling that `generation_config.json` recommends.

use std::fs;
use std::path::Path;

use super::MAX_CONFIG_BYTES;
use super::fields::Fields;
use crate::input::{json_object, read_limited};
use crate::{Result, Sampling};

impl Sampling {
    /// The recommendation of a model directory's `generation_config.json`; greedy if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) and [`Error::Checkpoint`](crate::Error::Checkpoint) if the file cannot be read, is no
    /// regular file or longer than 1 MiB; else those of [`from_json`](Self::from_json).
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        if fs::symlink_metadata(&path).is_err() {
            return Ok(Self::greedy());
        }
        Self::from_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)
    }

    /// Reads the text of a `generation_config.json`; `path` is what errors name.
    ///
    /// Only with `do_sample: true` do `temperature` (1 if missing), `top_k`, `top_p` and `min_p` apply, as in Transformers;
    /// `repetition_penalty` applies in any case. A limit that is missing is none: the `top_k` of 50 that Transformers 4
    /// assumes is not.
    ///
    /// # Errors
    ///
    /// [`Error::Json`](crate::Error::Json) if this is no JSON object or a key occurs twice;
    /// [`Error::Config`](crate::Error::Config) if a field is of a wrong type; [`Error::Setting`](crate::Error::Setting) if a
    /// value means nothing.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let map = json_object(bytes, path)?;
        let fields = Fields { map: &map, path, prefix: "" };
        let number = |field| fields.number(field).map(|found| found.map(|v| v as f32));
        let mut sampling = Self::greedy();
        if let Some(penalty) = number("repetition_penalty")? {
            sampling.repetition_penalty = penalty;
        }
        if fields.flag("do_sample")? == Some(true) {
            sampling.temperature = number("temperature")?.unwrap_or(1.0);
            // 0 is how Transformers writes that there is no limit.
            sampling.top_k = fields.size("top_k")?.filter(|&k| k > 0);
            sampling.top_p = number("top_p")?.unwrap_or(1.0);
            sampling.min_p = number("min_p")?.unwrap_or(0.0);
        }
        sampling.check()?;
        Ok(sampling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Sampling> {
        Sampling::from_json(text.as_bytes(), Path::new("m/generation_config.json"))
    }

    #[test]
    fn recommendations() {
        let demo = r#"{"eos_token_id": 2, "do_sample": true, "temperature": 0.8, "top_p": 0.95}"#;
        let expected = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::greedy() };
        assert_eq!(read(demo).unwrap(), expected);
        for (text, expected) in [
            ("{}", Sampling::greedy()),
            (r#"{"do_sample": false, "temperature": 0.8, "top_k": 9}"#, Sampling::greedy()),
            (r#"{"repetition_penalty": 2}"#, Sampling { repetition_penalty: 2.0, ..Sampling::greedy() }),
            (r#"{"do_sample": true, "top_k": 0}"#, Sampling { temperature: 1.0, ..Sampling::greedy() }),
            (
                r#"{"do_sample": true, "top_k": 9, "min_p": 0.5, "top_p": null}"#,
                Sampling { temperature: 1.0, top_k: Some(9), min_p: 0.5, ..Sampling::greedy() },
            ),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for (text, message) in [
            ("[]", "m/generation_config.json: "),
            (r#"{"do_sample": 1}"#, "do_sample: expected true or false, found 1"),
            (r#"{"do_sample": true, "temperature": "hot"}"#, "temperature: expected a number"),
            (r#"{"do_sample": true, "top_p": 2}"#, "top-p: expected more than 0, at most 1, found 2"),
            (r#"{"repetition_penalty": 0}"#, "repetition penalty: expected more than 0, found 0"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        assert_eq!(Sampling::from_dir(Path::new("no such directory")).unwrap(), Sampling::greedy());
    }
}
