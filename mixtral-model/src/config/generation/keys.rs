//! The keys that are not done, and those that change no text.

use serde_json::{Map, Value};

use crate::input::brief;

/// A sentence for each key that asks for what is not done, and one for all keys that nobody knows.
pub(super) fn not_done(map: &Map<String, Value>) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut unknown = Vec::new();
    for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        match NOT_DONE.iter().find(|(known, ..)| known == key) {
            Some((_, neutral, _)) if neutral(value) => {}
            Some((_, _, what)) => sentences.push(format!("{key} {}: {what} is not done", brief(value))),
            None if DONE.contains(&&**key) || WITHOUT_EFFECT.contains(&&**key) => {}
            None => unknown.push(key),
        }
    }
    match &unknown[..] {
        [] => {}
        [key] => sentences.push(format!("key {key:?} is not known and not used")),
        [first, ..] => {
            let n = unknown.len();
            sentences.push(format!("{n} keys are not known and not used, {first:?} the first of them"));
        }
    }
    sentences
}

/// The keys that are read.
const DONE: [&str; 22] = [
    "begin_suppress_tokens",
    "bad_words_ids",
    "do_sample",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Whether a value asks for nothing.
type Neutral = fn(&Value) -> bool;

const ONE: Neutral = |value| value.as_f64() == Some(1.0);
const ZERO: Neutral = |value| value.as_f64() == Some(0.0);
const FALSE: Neutral = |value| value == &Value::Bool(false);
const EMPTY: Neutral = |value| value.as_array().is_some_and(Vec::is_empty) || value == "";
const NOTHING: Neutral = |_| false;

/// Keys that change how text is chosen and are not done: what asks for nothing, and what else is asked for.
const NOT_DONE: [(&str, Neutral, &str); 19] = [
    ("assistant_early_exit", NOTHING, "assisted generation"),
    ("constraints", NOTHING, "constrained beam search"),
    ("diversity_penalty", ZERO, "diverse beam search"),
    ("dola_layers", NOTHING, "contrasting of layers"),
    ("encoder_no_repeat_ngram_size", ZERO, "forbidding what the prompt repeats"),
    ("encoder_repetition_penalty", ONE, "a preference for tokens of the prompt"),
    ("force_words_ids", EMPTY, "constrained beam search"),
    ("guidance_scale", ONE, "classifier-free guidance"),
    ("max_time", NOTHING, "a limit of time"),
    ("num_beam_groups", ONE, "diverse beam search"),
    ("num_beams", ONE, "beam search"),
    ("num_return_sequences", ONE, "more than one text"),
    ("penalty_alpha", ZERO, "contrastive search"),
    ("prompt_lookup_num_tokens", ZERO, "assisted generation"),
    ("remove_invalid_values", FALSE, "repair of values that are not finite"),
    ("stop_strings", EMPTY, "an end at a text"),
    ("token_healing", FALSE, "healing of tokens"),
    ("top_h", NOTHING, "top-h sampling"),
    ("watermarking_config", NOTHING, "watermarking"),
];

/// Keys that change no text, or none without a key that is not done.
const WITHOUT_EFFECT: [&str; 34] = [
    "_commit_hash",
    "_from_model_config",
    "_original_object_hash",
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
];
