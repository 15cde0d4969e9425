//! What a `tokenizer.json` has around its model: the normaliser and the pre-tokeniser, which put `▁` for spaces or cut words, and the
//! post-processor, which puts tokens around a text.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::byte_level::{ByteLevel, Words};
use super::find::{Finder, Token};
use super::written::{Layout, Metaspace, Scheme, Step};
use super::{Around, Reason};

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Normalizer {
    Prepend { prepend: String },
    Replace { pattern: Pattern, content: String },
    Sequence { normalizers: Vec<Normalizer> },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PreTokenizer {
    Metaspace {
        replacement: String,
        prepend_scheme: Option<Prepends>,
        split: Option<bool>,
        /// Before there were schemes, always or never.
        add_prefix_space: Option<bool>,
        /// The replacement once more.
        #[serde(rename = "str_rep")]
        _str_rep: Option<String>,
    },
    Split {
        pattern: Pattern,
        behavior: String,
        invert: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        use_regex: Option<bool>,
        /// Changes which stretch of the text a token says it is of, and no id.
        #[serde(rename = "trim_offsets")]
        _trim_offsets: Option<bool>,
    },
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Prepends {
    Always,
    First,
    Never,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    TemplateProcessing {
        single: Vec<Place>,
        special_tokens: HashMap<String, Tokens>,
    },
    #[serde(alias = "RobertaProcessing")]
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    /// Changes which stretch of the text a token says it is of, and no id.
    ByteLevel {},
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
enum Place {
    SpecialToken { id: String },
    Sequence { id: String },
}

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
}

/// What the normaliser and the pre-tokeniser do; `id_of` says which texts are pieces.
///
/// Accepted is what puts `▁` for all spaces and does nothing else but put more `▁` in front, and cut out whole pieces.
pub(super) fn layout(
    normalizer: &Value,
    pre_tokenizer: &Value,
    id_of: impl Fn(&str) -> Option<u32>,
) -> Reason<Layout> {
    let mut layout = Layout::default();
    let understood = normalize(parse(normalizer), &mut layout).is_some()
        && pre_tokenize(parse(pre_tokenizer), &mut layout, &id_of).is_some()
        && (layout.metaspace.is_some() || layout.normalizer.contains(&Step::MarkSpaces));
    if understood {
        return Ok(layout);
    }
    let found = format!("{normalizer} and {pre_tokenizer}");
    let found: String = found.chars().take(300).collect();
    Err(format!("normalizer and pre_tokenizer: expected what marks spaces with ▁ and no more, found {found}"))
}

/// The layout of byte-level BPE, if the pre-tokeniser is of that kind.
pub(super) fn byte_level(normalizer: &Value, pre_tokenizer: &Value) -> Reason<Option<Layout>> {
    if !pre_tokenizer.to_string().contains("\"ByteLevel\"") {
        return Ok(None);
    }
    let steps = match parse(pre_tokenizer) {
        Ok(Some(PreTokenizer::Sequence { pretokenizers })) => pretokenizers,
        Ok(Some(other)) => vec![other],
        _ => Vec::new(),
    };
    let found = match &*steps {
        [PreTokenizer::ByteLevel { add_prefix_space, use_regex: None | Some(true), .. }] => {
            Some((Words::Gpt2, *add_prefix_space))
        }
        [
            PreTokenizer::Split { pattern: Pattern::Regex(pattern), behavior, invert: false },
            PreTokenizer::ByteLevel { add_prefix_space: false, use_regex: Some(false), .. },
        ] if behavior == "Isolated" => Words::of(pattern).map(|words| (words, false)),
        _ => None,
    };
    match found {
        Some((words, space)) if normalizer.is_null() => {
            Ok(Some(Layout { bytes: Some(ByteLevel::new(words, space)?), ..Layout::default() }))
        }
        _ => {
            let found: String = format!("{normalizer} and {pre_tokenizer}").chars().take(300).collect();
            Err(format!(
                "byte-level BPE is supported as GPT-2, Llama 3, Qwen 2 and Mistral's tekken have it: normalizer and \
                 pre_tokenizer: expected none and the words of one of them, found {found}"
            ))
        }
    }
}

/// The ids that the post-processor puts around a single text, with the spelling of each.
pub(super) fn around(post_processor: &Value) -> Reason<(Around, Vec<(String, u32)>)> {
    let mut names = Vec::new();
    let mut found = Around::default();
    if let Some(parsed) = parse::<PostProcessor>(post_processor).transpose() {
        let understood = parsed.is_ok_and(|parsed| surround(parsed, &mut found, &mut names).is_some());
        if !understood {
            let text = post_processor.to_string().chars().take(300).collect::<String>();
            return Err(format!(
                "post_processor: expected TemplateProcessing of one sequence and known tokens, found {text}"
            ));
        }
    }
    Ok((found, names))
}

/// The value, unless it is null.
fn parse<T: for<'de> Deserialize<'de>>(value: &Value) -> serde_json::Result<Option<T>> {
    Option::deserialize(value)
}

fn normalize(parsed: serde_json::Result<Option<Normalizer>>, layout: &mut Layout) -> Option<()> {
    match parsed.ok()? {
        None => {}
        Some(Normalizer::Sequence { normalizers }) => {
            for normalizer in normalizers {
                normalize(Ok(Some(normalizer)), layout)?;
            }
        }
        Some(Normalizer::Prepend { prepend }) => {
            (prepend == "▁").then(|| layout.normalizer.push(Step::Prepend))?;
        }
        Some(Normalizer::Replace { pattern, content }) => {
            layout.normalizer.push(match (pattern, &*content) {
                (Pattern::String(pattern), "▁") if pattern == " " => Step::MarkSpaces,
                (Pattern::Regex(pattern), "▁▁") if pattern == r"\A▁" => Step::DoubleLeading,
                _ => return None,
            });
        }
    }
    Some(())
}

fn pre_tokenize(
    parsed: serde_json::Result<Option<PreTokenizer>>,
    layout: &mut Layout,
    id_of: &impl Fn(&str) -> Option<u32>,
) -> Option<()> {
    match parsed.ok()? {
        None => {}
        Some(PreTokenizer::Sequence { pretokenizers }) => {
            for pre_tokenizer in pretokenizers {
                pre_tokenize(Ok(Some(pre_tokenizer)), layout, id_of)?;
            }
        }
        Some(PreTokenizer::Metaspace { replacement, prepend_scheme, split, add_prefix_space, .. }) => {
            let first_step = layout.metaspace.is_none() && layout.isolated.is_empty();
            let scheme = match (prepend_scheme, add_prefix_space) {
                (Some(Prepends::Never), _) | (None, Some(false)) => Scheme::Never,
                (Some(Prepends::First), None | Some(true)) => Scheme::First,
                (None | Some(Prepends::Always), None | Some(true)) => Scheme::Always,
                (Some(_), Some(false)) => return None,
            };
            let metaspace = Metaspace { scheme, split: split.unwrap_or(true) };
            (replacement == "▁" && first_step).then(|| layout.metaspace = Some(metaspace))?;
        }
        // What Transformers writes for user-defined pieces.
        Some(PreTokenizer::Split { pattern: Pattern::Regex(pattern), behavior, invert: false })
            if behavior == "Isolated" && layout.isolated.is_empty() =>
        {
            let token = |text: String| Some(Token::plain(id_of(&text)?, &text));
            let tokens = alternatives(&pattern)?.into_iter().map(token).collect::<Option<Vec<_>>>()?;
            layout.isolated = Finder::new(tokens).ok()?;
        }
        Some(PreTokenizer::Split { .. } | PreTokenizer::ByteLevel { .. }) => return None,
    }
    Some(())
}

/// The texts that a regular expression of plain texts and `|` matches, if the longest come first, as they are looked for.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let mut texts = vec![String::new()];
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let plain = match character {
            '|' => {
                texts.push(String::new());
                continue;
            }
            '\\' => characters.next().filter(|escaped| !escaped.is_alphanumeric())?,
            special if ".+*?()[]{}^$".contains(special) => return None,
            other => other,
        };
        texts.last_mut()?.push(plain);
    }
    let lengths = || texts.iter().map(|text| text.chars().count());
    let sorted = lengths().zip(lengths().skip(1)).all(|(length, next)| length >= next);
    (sorted && lengths().all(|length| length > 0)).then_some(texts)
}

fn surround(parsed: PostProcessor, around: &mut Around, names: &mut Vec<(String, u32)>) -> Option<()> {
    match parsed {
        PostProcessor::ByteLevel {} => {}
        PostProcessor::Sequence { processors } => {
            for processor in processors {
                surround(processor, around, names)?;
            }
        }
        PostProcessor::BertProcessing { sep, cls } => {
            around.before.insert(0, cls.1);
            around.after.push(sep.1);
            names.extend([cls, sep]);
        }
        PostProcessor::TemplateProcessing { single, special_tokens } => {
            let (mut before, mut after, mut passed) = (Vec::new(), Vec::new(), false);
            for place in single {
                match place {
                    Place::Sequence { id } if id == "A" && !passed => passed = true,
                    Place::Sequence { .. } => return None,
                    Place::SpecialToken { id } => {
                        let Tokens { ids } = special_tokens.get(&id)?;
                        if passed { &mut after } else { &mut before }.extend(ids);
                        if let [only] = **ids {
                            names.push((id, only));
                        }
                    }
                }
            }
            passed.then_some(())?;
            around.before.splice(0..0, before);
            around.after.extend(after);
        }
    }
    Some(())
}
