//! The keys that are done.

use serde_json::Value;

use crate::config::fields::Fields;
use crate::sampling::{Length, LengthDecay, Rules};
use crate::{Result, Sampling};

/// Names of settings where they differ from the keys that give them.
pub(super) const KEYS: [(&str, &str); 10] = [
    ("top-k", "top_k"),
    ("top-p", "top_p"),
    ("min-p", "min_p"),
    ("typical-p", "typical_p"),
    ("epsilon cutoff", "epsilon_cutoff"),
    ("eta cutoff", "eta_cutoff"),
    ("repetition penalty", "repetition_penalty"),
    ("bias", "sequence_bias"),
    ("bad words", "bad_words_ids"),
    ("length decay", "exponential_decay_length_penalty"),
];

/// How tokens are chosen.
pub(super) fn sampling(fields: &Fields<'_>) -> Result<Sampling> {
    let number = |field| fields.number(field).map(|found| found.map(|v| v as f32));
    let mut sampling = Sampling::greedy();
    if fields.flag("do_sample")? == Some(true) {
        sampling.temperature = number("temperature")?.unwrap_or(1.0);
        // 0 is how Transformers writes that there is no limit.
        sampling.top_k = fields.size("top_k")?.filter(|&k| k > 0);
        sampling.top_p = number("top_p")?.unwrap_or(sampling.top_p);
        sampling.min_p = number("min_p")?.unwrap_or(sampling.min_p);
        sampling.typical_p = number("typical_p")?.unwrap_or(sampling.typical_p);
        sampling.epsilon_cutoff = number("epsilon_cutoff")?.unwrap_or(sampling.epsilon_cutoff);
        sampling.eta_cutoff = number("eta_cutoff")?.unwrap_or(sampling.eta_cutoff);
    }
    sampling.repetition_penalty = number("repetition_penalty")?.unwrap_or(sampling.repetition_penalty);
    sampling.rules = rules(fields)?;
    Ok(sampling)
}

/// The most tokens; and what the file says of it that another key takes precedence over.
pub(super) fn max_length(fields: &Fields<'_>) -> Result<(Option<Length>, Option<&'static str>)> {
    let positive = |field| match fields.size(field)? {
        Some(0) => Err(fields.error(field, "1 or more")),
        size => Ok(size),
    };
    Ok(match (positive("max_new_tokens")?, positive("max_length")?) {
        (Some(new), total) => {
            (Some(Length::New(new)), total.map(|_| "max_length is not used, as max_new_tokens is there"))
        }
        (None, total) => (total.map(Length::Total), None),
    })
}

fn rules(fields: &Fields<'_>) -> Result<Rules> {
    let pairs = "a list of pairs, each of a list of token ids and a number";
    Ok(Rules {
        biases: each(fields, "sequence_bias", pairs, bias)?,
        no_repeat_ngram: fields.size("no_repeat_ngram_size")?.unwrap_or(0),
        bad_words: each(fields, "bad_words_ids", "a list of lists of token ids", sequence)?,
        min_length: match (fields.size("min_new_tokens")?, fields.size("min_length")?) {
            (Some(new), _) => Length::New(new),
            (None, total) => Length::Total(total.unwrap_or(0)),
        },
        forced_second: fields.token("forced_bos_token_id")?,
        forced_last: fields.tokens("forced_eos_token_id")?.unwrap_or_default(),
        length_decay: length_decay(fields)?,
        suppressed: suppressed(fields, "suppress_tokens")?,
        suppressed_first: suppressed(fields, "begin_suppress_tokens")?,
    })
}

/// The items of a list, or none if there is no list.
fn each<T, C: Default + FromIterator<T>>(
    fields: &Fields<'_>,
    field: &str,
    expected: &str,
    item: impl Fn(&Value) -> Option<T>,
) -> Result<C> {
    let Some(value) = fields.get(field) else { return Ok(C::default()) };
    let items = value.as_array().and_then(|items| items.iter().map(item).collect());
    items.ok_or_else(|| fields.error(field, expected))
}

fn sequence(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn bias(value: &Value) -> Option<(Vec<u32>, f32)> {
    match &value.as_array()?[..] {
        [tokens, bias] => Some((sequence(tokens)?, bias.as_f64()? as f32)),
        _ => None,
    }
}

/// Tokens that do not come. What is no token id, as the -1 of some files, never does.
fn suppressed(fields: &Fields<'_>, field: &str) -> Result<Vec<u32>> {
    let id = |value: &Value| Some(u32::try_from(value.as_i64()?).ok());
    let ids: Vec<_> = each(fields, field, "a list of token ids", id)?;
    Ok(ids.into_iter().flatten().collect())
}

fn length_decay(fields: &Fields<'_>) -> Result<Option<LengthDecay>> {
    let field = "exponential_decay_length_penalty";
    let read = |value: &Value| match &value.as_array()?[..] {
        [after, factor] => {
            Some(LengthDecay { after: usize::try_from(after.as_u64()?).ok()?, factor: factor.as_f64()? })
        }
        _ => None,
    };
    let Some(value) = fields.get(field) else { return Ok(None) };
    let decay = read(value);
    decay.map(Some).ok_or_else(|| fields.error(field, "a list of a number of tokens and a factor"))
}
