//! What `generation_config.json` may say.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::{LengthDecay, Rules};

fn file(text: &Value) -> GenerationFile {
    GenerationFile::from_json(text.to_string().as_bytes(), Path::new("m/generation_config.json")).unwrap()
}

fn read(text: &Value) -> Result<GenerationConfig> {
    file(text).read()
}

#[test]
fn values_that_are_done() {
    type Change = fn(&mut GenerationConfig);
    let nothing: Change = |_| ();
    let cases: &[(Value, Change)] = &[
        (json!({}), nothing),
        (json!({"do_sample": false, "temperature": 0.8, "top_k": 9, "top_p": 7}), nothing),
        (json!({"do_sample": true}), |c| c.sampling.temperature = 1.0),
        (json!({"eos_token_id": 2, "do_sample": true, "temperature": 0.8, "top_p": 0.95}), |c| {
            (c.sampling.temperature, c.sampling.top_p) = (0.8, 0.95);
        }),
        (json!({"do_sample": true, "top_k": 0}), |c| c.sampling.temperature = 1.0),
        (json!({"do_sample": true, "top_k": 9, "min_p": 0.5, "top_p": null, "typical_p": 0.25}), |c| {
            c.sampling.temperature = 1.0;
            (c.sampling.top_k, c.sampling.min_p, c.sampling.typical_p) = (Some(9), 0.5, 0.25);
        }),
        (json!({"do_sample": true, "epsilon_cutoff": 0.5, "eta_cutoff": 0.25}), |c| {
            let sampling = &mut c.sampling;
            (sampling.temperature, sampling.epsilon_cutoff, sampling.eta_cutoff) = (1.0, 0.5, 0.25);
        }),
        (json!({"repetition_penalty": 2}), |c| c.sampling.repetition_penalty = 2.0),
        (json!({"max_new_tokens": 7}), |c| c.max_length = Some(Length::New(7))),
        (json!({"max_length": 7}), |c| c.max_length = Some(Length::Total(7))),
        (json!({"min_length": 7}), |c| c.sampling.rules.min_length = Length::Total(7)),
        (json!({"min_length": 7, "min_new_tokens": 2}), |c| {
            c.sampling.rules.min_length = Length::New(2);
        }),
        (
            json!({
                "sequence_bias": [[[5], 1.5], [[6, 7], -2], [[5], 2]], "no_repeat_ngram_size": 3,
                "bad_words_ids": [[8], [9, 10]], "forced_bos_token_id": 11, "forced_eos_token_id": 12,
                "exponential_decay_length_penalty": [13, 1.25], "suppress_tokens": [14, -1, 5_000_000_000u64],
                "begin_suppress_tokens": [15],
            }),
            |c| {
                c.sampling.rules = Rules {
                    biases: [(vec![5], 2.0), (vec![6, 7], -2.0)].into(),
                    no_repeat_ngram: 3,
                    bad_words: vec![vec![8], vec![9, 10]],
                    min_length: Length::Total(0),
                    forced_second: Some(11),
                    forced_last: vec![12],
                    length_decay: Some(LengthDecay { after: 13, factor: 1.25 }),
                    suppressed: vec![14],
                    suppressed_first: vec![15],
                };
            },
        ),
    ];
    let mut failed = Vec::new();
    for (text, change) in cases {
        let mut expected = GenerationConfig::default();
        expected.sampling.rules.min_length = Length::Total(0);
        change(&mut expected);
        match read(text) {
            Ok(found) if found == expected => {}
            other => failed.push(format!("{text}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_is_not_done_is_named() {
    let warnings = |text: Value| {
        let all = read(&text).unwrap().warnings;
        all.into_iter().map(|w| w.strip_prefix("m/generation_config.json: ").unwrap().to_owned()).collect()
    };
    let none: Vec<String> = warnings(json!({
        "num_beams": 1, "num_beam_groups": 1.0, "diversity_penalty": 0, "guidance_scale": null, "use_cache": false,
        "transformers_version": "5.24.0", "_from_model_config": true, "renormalize_logits": true, "length_penalty": 2,
        "remove_invalid_values": false, "stop_strings": [], "pad_token_id": 0, "watermarking_config": null, "odd": null,
    }));
    assert_eq!(none, [""; 0]);
    for (text, expected) in [
        (json!({"num_beams": 4}), "num_beams 4: beam search is not done"),
        (json!({"penalty_alpha": 0.6}), "penalty_alpha 0.6: contrastive search is not done"),
        (json!({"guidance_scale": 1.5}), "guidance_scale 1.5: classifier-free guidance is not done"),
        (
            json!({"watermarking_config": {"bias": 2.5}}),
            "watermarking_config {\"bias\":2.5}: watermarking is not done",
        ),
        (json!({"stop_strings": "\n"}), "stop_strings \"\\n\": an end at a text is not done"),
        (json!({"num_beams": "x"}), "num_beams \"x\": beam search is not done"),
        (json!({"max_length": 9, "max_new_tokens": 3}), "max_length is not used, as max_new_tokens is there"),
        (json!({"a\u{1b}": 1}), "key \"a\\u{1b}\" is not known and not used"),
        (json!({"b": 1, "a": [], "c": {}}), "3 keys are not known and not used, \"b\" the first of them"),
    ] {
        let found: Vec<String> = warnings(text);
        assert_eq!(found, [expected]);
    }
}

#[test]
fn refused_values_name_file_and_key() {
    let mut failed = Vec::new();
    for (text, message) in [
        (json!({"do_sample": 1}), "do_sample: expected true or false, found 1"),
        (json!({"do_sample": true, "temperature": "hot"}), "temperature: expected a number"),
        (json!({"do_sample": true, "temperature": 1e300}), "temperature: expected 0 or more, found inf"),
        (json!({"do_sample": true, "top_p": 2}), "top_p: expected more than 0, at most 1, found 2"),
        (json!({"do_sample": true, "top_k": -1}), "top_k: expected a non-negative integer, found -1"),
        (json!({"do_sample": true, "typical_p": 0}), "typical_p: expected more than 0"),
        (json!({"do_sample": true, "epsilon_cutoff": 1}), "epsilon_cutoff: expected 0 or more, less than 1"),
        (json!({"do_sample": true, "eta_cutoff": -1}), "eta_cutoff: expected 0 or more, less than 1"),
        (json!({"repetition_penalty": 0}), "repetition_penalty: expected more than 0, found 0"),
        (json!({"max_new_tokens": 0}), "max_new_tokens: expected 1 or more, found 0"),
        (json!({"max_length": -1}), "max_length: expected a non-negative integer, found -1"),
        (json!({"min_new_tokens": 1.5}), "min_new_tokens: expected a non-negative integer, found 1.5"),
        (json!({"suppress_tokens": 5}), "suppress_tokens: expected a list of token ids, found 5"),
        (json!({"suppress_tokens": [1, "2"]}), "suppress_tokens: expected a list of token ids"),
        (json!({"bad_words_ids": [1]}), "bad_words_ids: expected a list of lists of token ids, found [1]"),
        (json!({"bad_words_ids": [[-1]]}), "bad_words_ids: expected a list of lists"),
        (json!({"bad_words_ids": [[]]}), "bad_words_ids: expected sequences of at least one token"),
        (json!({"sequence_bias": {"(5,)": 2.0}}), "sequence_bias: expected a list of pairs"),
        (json!({"sequence_bias": [[5, 2.0]]}), "sequence_bias: expected a list of pairs"),
        (json!({"sequence_bias": [[[5], 2.0, 1]]}), "sequence_bias: expected a list of pairs"),
        (json!({"sequence_bias": [[[], 2.0]]}), "sequence_bias: expected a sequence of at least one token"),
        (json!({"sequence_bias": [[[5], 1e300]]}), "sequence_bias: expected a finite number"),
        (json!({"forced_bos_token_id": [1]}), "forced_bos_token_id: expected a token id, found [1]"),
        (json!({"forced_eos_token_id": -1}), "forced_eos_token_id: expected a token id or a list"),
        (
            json!({"exponential_decay_length_penalty": [1]}),
            "exponential_decay_length_penalty: expected a list of a number of tokens and a factor, found [1]",
        ),
    ] {
        let found = read(&text);
        match &found {
            Err(error @ Error::Config { .. })
                if error.to_string().starts_with(&format!("m/generation_config.json: {message}")) => {}
            _ => failed.push(format!("{text}: {found:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for bad in ["", "[]", "{\"top_p\": 1, \"top_p\": 1}"] {
        assert!(GenerationFile::from_json(bad.as_bytes(), Path::new("x")).is_err(), "{bad}");
    }
}

#[test]
fn what_is_said_elsewhere_is_not_looked_at() {
    let bad = json!({"do_sample": true, "temperature": "hot", "top_p": 2, "top_k": 3, "num_beams": 4});
    let found = file(&bad).without("temperature").without("top_p").without("num_beams").read().unwrap();
    assert_eq!((found.sampling.top_k, found.sampling.temperature, found.warnings.len()), (Some(3), 1.0, 0));
    assert_eq!(GenerationConfig::from_dir(Path::new("no such directory")).unwrap().max_length, None);
}

#[test]
fn lengths_count_from_the_prompt_or_the_beginning() {
    let most = |text: Value, before| read(&text).unwrap().max_new_tokens(before);
    assert_eq!(most(json!({}), 3).unwrap(), None);
    assert_eq!(most(json!({"max_new_tokens": 5}), 3).unwrap(), Some(5));
    assert_eq!(most(json!({"max_length": 5}), 3).unwrap(), Some(2));
    let error = most(json!({"max_length": 5}), 5).unwrap_err().to_string();
    assert_eq!(error, "max_length: expected more than the 5 tokens of the prompt, found 5");
}
