//! Vocabularies that are spelled out, as GGUF files hold them.

use std::path::Path;

use mixtral_model::{BytePieces, Result, SentencePieces, Tokenizer};
use serde_json::Value;

use crate::as_json::pieces;
use crate::{Encoded, MODEL, Report, from_model, goldens};

/// Mixtral's tokenizer, spelled out.
fn spelled_out() -> SentencePieces {
    let all = pieces(MODEL);
    let texts = all.iter().map(|piece| piece.text.clone()).collect();
    let mut spelled = SentencePieces::new(texts, all.iter().map(|piece| piece.score).collect());
    spelled.types = all.iter().map(|piece| u32::from(piece.kind)).collect();
    spelled
}

/// `<unk> <s> </s>`, then the given texts with their types; scores fall with the ids.
fn small(more: &[(&str, u32)]) -> SentencePieces {
    let texts = ["<unk>", "<s>", "</s>"].into_iter().chain(more.iter().map(|(text, _)| *text));
    let scores = (0..3 + more.len()).map(|id| -(id as f32)).collect();
    let mut spelled = SentencePieces::new(texts.map(str::to_owned).collect(), scores);
    spelled.types = [2, 3, 3].into_iter().chain(more.iter().map(|(_, kind)| *kind)).collect();
    spelled
}

fn build(spelled: SentencePieces) -> Result<Tokenizer> {
    Tokenizer::from_pieces(spelled, Path::new("m.gguf"))
}

#[test]
fn a_vocabulary_that_is_spelled_out_is_that_of_the_model() {
    let mut report = Report::default();
    let model = from_model(MODEL);
    let mut untyped = spelled_out();
    untyped.types.clear();
    for (name, spelled) in [("all", spelled_out()), ("no types", untyped)] {
        let tokenizer = build(spelled).unwrap();
        for Encoded { text, ids, hf_ids, .. } in goldens().encode {
            let case = || format!("{name}: {text:?}");
            report.check(case, tokenizer.encode_ordinary(&text).unwrap(), ids.clone());
            report.check(case, tokenizer.encode(&text).unwrap(), hf_ids.unwrap_or(ids));
            report.check(case, tokenizer.encode_prompt(&text).unwrap(), model.encode_prompt(&text).unwrap());
        }
        for id in 0..32000 {
            report.check(|| name.to_owned(), tokenizer.piece(id), model.piece(id));
            report.check(|| name.to_owned(), tokenizer.is_control(id), model.is_control(id));
        }
        for text in ["<s>", "▁the", "<0x0A>", "no such piece", ""] {
            report.check(|| name.to_owned(), tokenizer.id_of(text), model.id_of(text));
        }
    }
    report.finish();
}

#[test]
fn user_defined_pieces_are_recognised_in_any_text_and_control_pieces_where_they_are_meant() {
    let letters = ["▁", "a", "b", "▁a"].map(|text| (text, 1));
    let tokenizer = build(small(&[&letters[..], &[("[REF]", 4), ("[INST]", 3)]].concat())).unwrap();
    // With ids 3 ▁, 4 a, 5 b, 6 ▁a, 7 [REF], 8 [INST], and no byte pieces.
    assert_eq!(tokenizer.encode("ab[REF]b[INST]a").unwrap(), [6, 5, 7, 3, 5, 8, 6]);
    assert_eq!(tokenizer.encode_ordinary("ab[REF]b[INST]a").unwrap(), [6, 5, 7, 5, 0, 4]);
    assert_eq!(tokenizer.encode_ordinary("<s>a</s>").unwrap(), [3, 0, 4, 0]);
    assert_eq!(tokenizer.decode(&[1, 6, 7, 8, 5, 2]), "a[REF]b");
    assert_eq!([7, 8].map(|id| tokenizer.is_control(id)), [false, true]);
}

/// The ids are those of sentencepiece 0.2.3 with such a model.
#[test]
fn unused_pieces_are_cut_up_again() {
    let mut spelled =
        small(&[("▁", 1), ("a", 1), ("b", 1), ("c", 1), ("ab", 5), ("abc", 1), ("bc", 1), ("abca", 5)]);
    spelled.space_in_front = false;
    let tokenizer = build(spelled).unwrap();
    for (text, ids) in [("ab", &[4, 5][..]), ("abc", &[8]), ("abca", &[8, 4]), ("bca", &[9, 4])] {
        assert_eq!(tokenizer.encode_ordinary(text).unwrap(), ids, "{text}");
    }
    assert_eq!(tokenizer.decode(&[7]), "ab");
}

#[test]
fn what_surrounds_a_prompt_is_said_by_the_file() {
    let pieces = || small(&[("▁", 1), ("a", 1)]);
    let prompt = |change: fn(&mut SentencePieces), text: &str| {
        let mut spelled = pieces();
        change(&mut spelled);
        build(spelled).unwrap().encode_prompt(text).unwrap()
    };
    assert_eq!(prompt(|_| {}, "a"), [1, 3, 4]);
    assert_eq!(prompt(|_| {}, "<s><s>a"), [1, 3, 4]);
    assert_eq!(prompt(|p| p.add_bos = Some(false), "a"), [3, 4]);
    assert_eq!(prompt(|p| p.add_bos = Some(false), "<s><s>a"), [1, 1, 3, 4]);
    assert_eq!(prompt(|p| p.add_eos = Some(true), "a"), [1, 3, 4, 2]);
    assert_eq!(prompt(|p| p.space_in_front = false, "a"), [1, 4]);
    assert_eq!(prompt(|p| (p.bos, p.eos) = (Some(2), Some(1)), "a"), [2, 3, 4]);
}

#[test]
fn scores_that_tell_nothing_are_said() {
    let mut spelled = small(&[("▁", 1), ("a", 1)]);
    assert_eq!(build(spelled.clone()).unwrap().warnings(), [""; 0]);
    spelled.scores.fill(-1000.0);
    assert_eq!(
        build(spelled).unwrap().warnings(),
        ["m.gguf: scores: -1000 for all pieces, which are merged from left to right"]
    );
}

#[test]
fn pieces_that_do_not_fit_together_are_an_error() {
    fn with(change: fn(&mut SentencePieces)) -> String {
        let mut spelled = small(&[("▁", 1), ("a", 1), ("▁a", 1)]);
        change(&mut spelled);
        build(spelled).unwrap_err().to_string()
    }
    type Change = fn(&mut SentencePieces);
    let cases: [(Change, &str); 15] = [
        (|p| p.texts.clear(), "expected pieces, found none"),
        (|p| p.scores.truncate(5), "scores: expected 6, one a piece, found 5"),
        (|p| p.scores.clear(), "scores: expected 6, one a piece, found 0"),
        (|p| p.types.push(1), "types: expected 6, one a piece, found 7"),
        (|p| p.scores[4] = f32::NAN, "piece 4 \"a\": expected a score, found NaN"),
        (|p| p.types[4] = 0, "piece 4 \"a\": expected a type from 1 (normal) to 6 (byte), found 0"),
        (|p| p.types[4] = u32::MAX, "found 4294967295"),
        (|p| p.types[4] = 6, "piece 4: expected a byte such as <0x0A>, found \"a\""),
        (|p| p.bos = Some(6), "bos: expected an id below 6, found 6"),
        (|p| p.eos = Some(u32::MAX), "eos: expected an id below 6"),
        (|p| p.unk = Some(9), "unk: expected an id below 6, found 9"),
        (|p| p.texts[4].clear(), "piece 4: expected a text, found none"),
        (|p| p.texts[4] = "▁".into(), "piece 4: expected a new text, found \"▁\" of piece 3"),
        (|p| p.texts[5] = "▁b".into(), "piece 5 \"▁b\": expected characters that are pieces, found 'b'"),
        (|p| p.texts[5] = "a".repeat(129), "piece 5: expected at most 128 bytes, found 129"),
    ];
    let mut report = Report::default();
    for (change, message) in cases {
        let error = with(change);
        report.check(
            || format!("{error} / {message}"),
            (error.starts_with("m.gguf: "), error.contains(message)),
            (true, true),
        );
    }
    report.finish();
    let mut byte = small(&[("<0x00>", 6)]);
    assert_eq!(
        build(byte.clone()).unwrap_err().to_string(),
        "m.gguf: expected a piece \"<0x01>\", found none"
    );
    byte.types.clear();
    assert!(build(byte).is_err());
}

/// A byte-level vocabulary of a `tokenizer.json`, spelled out as llama.cpp's converter does, is the same tokenizer.
#[test]
fn a_byte_level_vocabulary_that_is_spelled_out() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/cases/17-byte-level-tokenizer-of-a-llama-3-merge/model");
    let bytes = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let expected = Tokenizer::from_dir(&dir).unwrap();
    let json: Value = serde_json::from_slice(&bytes).unwrap();
    let model = &json["model"];
    let mut texts = vec![String::new(); expected.vocab_size()];
    let mut types = vec![1; texts.len()];
    for (text, id) in model["vocab"].as_object().unwrap() {
        texts[id.as_u64().unwrap() as usize] = text.clone();
    }
    for token in json["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        texts[id] = token["content"].as_str().unwrap().to_owned();
        types[id] = if token["special"] == true { 3 } else { 4 };
    }
    let merge = |pair: &Value| match pair {
        Value::String(pair) => pair.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges: Vec<_> = model["merges"].as_array().unwrap().iter().map(merge).collect();
    let words = if json["pre_tokenizer"].to_string().contains("{1,3}") { "llama-bpe" } else { "gpt-2" };
    let mut spelled = BytePieces::new(texts, merges, words, expected.bos(), expected.eos());
    spelled.types = types;
    let build = |spelled: &BytePieces| Tokenizer::from_byte_pieces(spelled, Path::new("m.gguf"));
    let tokenizer = build(&spelled).unwrap();
    let special = expected.piece(expected.bos()).unwrap().to_owned();
    for text in [
        "",
        " ",
        "Hello world",
        "  two  spaces\n\nand lines",
        "don't WON'T 12345 é漢字 🦀",
        &format!("a{special}b"),
    ] {
        let ids = expected.encode(text).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), expected.decode(&ids), "{text:?}");
    }
    let fails = |change: fn(&mut BytePieces)| {
        let mut damaged = spelled.clone();
        change(&mut damaged);
        build(&damaged).unwrap_err().to_string()
    };
    assert!(fails(|pieces| pieces.words = "abacus".to_owned()).contains("abacus"));
    assert!(fails(|pieces| pieces.merges.push("alone".to_owned())).contains("alone"));
    assert!(fails(|pieces| pieces.merges.push("no such".to_owned())).contains("no such"));
    assert!(fails(|pieces| pieces.types = vec![1]).contains("types"));
    assert!(fails(|pieces| pieces.bos = u32::MAX).contains("bos"));
    assert!(fails(|pieces| pieces.texts.clear()).contains("types"));
}
