//! The tokenizer against what others' code computes, and under damage.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod as_json;
mod byte_level;
mod cases;
mod damage;
mod directory;
mod layouts;
mod pieces;
#[path = "../common/report.rs"]
mod report;
mod tekken;

use std::path::Path;

use as_json::{Layout, as_json};
use mixtral_model::Tokenizer;
use proptest::prelude::*;
use report::Report;
use serde::Deserialize;

const MODEL: &[u8] = include_bytes!("../fixtures/tokenizer/tokenizer.model");
const DEMO_MODEL: &[u8] = include_bytes!("../fixtures/demo/tokenizer.model");
const DEMO_JSON: &[u8] = include_bytes!("../fixtures/demo/tokenizer.json");

#[derive(Deserialize)]
struct Goldens {
    bos: u32,
    eos: u32,
    unk: u32,
    vocab_size: usize,
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    hf_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
}

/// Mixtral's tokenizer as one kind of file.
struct Variant {
    name: &'static str,
    tokenizer: Tokenizer,
    layout: Option<Layout>,
}

fn from_model(bytes: &[u8]) -> Tokenizer {
    Tokenizer::from_sentencepiece(bytes, Path::new("tokenizer.model")).unwrap()
}

fn from_json(bytes: &[u8]) -> Tokenizer {
    Tokenizer::from_json(bytes, Path::new("tokenizer.json")).unwrap()
}

fn variants() -> Vec<Variant> {
    let json = |name, layout| Variant {
        name,
        tokenizer: from_json(as_json(MODEL, layout).to_string().as_bytes()),
        layout: Some(layout),
    };
    vec![
        Variant { name: "tokenizer.model", tokenizer: from_model(MODEL), layout: None },
        json("tokenizer.json, Prepend", Layout::Prepend),
        json("tokenizer.json, Metaspace first", Layout::Metaspace("first")),
        json("tokenizer.json, Metaspace always", Layout::Metaspace("always")),
    ]
}

fn goldens() -> Goldens {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/goldens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_file_names_its_special_ids() {
    let goldens = goldens();
    for Variant { name, tokenizer, .. } in variants() {
        assert_eq!(tokenizer.vocab_size(), goldens.vocab_size, "{name}");
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos(), tokenizer.unk()),
            (goldens.bos, goldens.eos, Some(goldens.unk)),
            "{name}"
        );
        assert_eq!(tokenizer.piece(goldens.bos), Some("<s>"));
        assert_eq!(tokenizer.piece(3 + 0x0a), Some("<0x0A>"));
        assert_eq!(tokenizer.piece(28705), Some("▁"));
        assert_eq!(tokenizer.piece(32000), None);
    }
}

#[test]
fn encodes_as_others_do() {
    let mut report = Report::default();
    for Variant { name, tokenizer, layout } in variants() {
        for Encoded { text, ids, hf_ids, .. } in goldens().encode {
            report.check(
                || format!("{name}: ordinary: {text:?}"),
                tokenizer.encode_ordinary(&text).unwrap(),
                ids.clone(),
            );
            let expected = match layout {
                None | Some(Layout::Prepend) => hf_ids.unwrap_or(ids),
                // Metaspace puts no second `▁` before a space; where it matters, see `metaspace_layouts`.
                Some(Layout::Metaspace(_)) if hf_ids.is_some() || text.starts_with([' ', '▁']) => continue,
                Some(Layout::Metaspace(_)) => ids,
            };
            report.check(|| format!("{name}: {text:?}"), tokenizer.encode(&text).unwrap(), expected);
        }
    }
    report.finish();
}

#[test]
fn decodes_as_sentencepiece_does() {
    let mut report = Report::default();
    let goldens = goldens();
    let encoded = goldens.encode.iter().map(|row| (&row.ids, &row.decoded));
    let cases: Vec<_> = encoded.chain(goldens.decode.iter().map(|row| (&row.ids, &row.text))).collect();
    for Variant { name, tokenizer, .. } in variants() {
        for (ids, text) in &cases {
            let case = || format!("{name}: {ids:?}");
            report.check(case, tokenizer.decode(ids), String::clone(text));
            report.check(case, stream(&tokenizer, ids), String::clone(text));
        }
    }
    report.finish();
}

/// Cases chosen for the rules of decoding; the texts are sentencepiece's.
#[test]
fn decodes_the_corners_as_sentencepiece_does() {
    let byte = |byte: u32| 3 + byte;
    let cases: [(&[u32], &str); 19] = [
        (&[28705, 28705], " "),
        (&[1, 28705, 28705], " "),
        (&[28705, 1, 22557], " Hello"),
        (&[2, 28705, 2, 22557], " Hello"),
        (&[1, 22557], "Hello"),
        (&[259, 22557], "  Hello"),
        (&[byte(0), 22557], "\0 Hello"),
        (&[byte(0x20), 28705], "  "),
        (&[0, 22557], " \u{2047}  Hello"),
        (&[28705, 0], " \u{2047} "),
        (&[0, 0], " \u{2047}  \u{2047} "),
        (&[byte(0xe3), 22557], "\u{fffd} Hello"),
        (&[1, byte(0xe3)], "\u{fffd}"),
        (&[byte(0xe2), byte(0x96), byte(0x81), 22557], "▁ Hello"),
        (&[byte(0xef), byte(0xbf), byte(0xbd)], "\u{fffd}"),
        (&[byte(0xed), byte(0xa0), byte(0x80)], "\u{fffd}\u{fffd}\u{fffd}"),
        (&[byte(0xf4), byte(0x90), byte(0x80), byte(0x80)], "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        (&[byte(0xf0), byte(0x9f), byte(0x98)], "\u{fffd}\u{fffd}\u{fffd}"),
        (&[byte(0xf0), byte(0x9f), 2, byte(0x98)], "\u{fffd}\u{fffd}\u{fffd}"),
    ];
    let mut report = Report::default();
    let tokenizer = from_model(MODEL);
    for (ids, text) in cases {
        report.check(|| format!("{ids:?}"), tokenizer.decode(ids), text.to_owned());
    }
    report.finish();
}

/// The ids are those of the `tokenizers` library, 0.23.3, run on such files.
#[test]
fn metaspace_layouts() {
    let cases: [(&str, &[u32], &[u32]); 11] = [
        ("", &[], &[]),
        (" ", &[28705], &[28705]),
        ("Hello", &[22557], &[22557]),
        (" Hello", &[22557], &[22557]),
        ("  Hello", &[28705, 22557], &[28705, 22557]),
        ("▁Hello", &[22557], &[22557]),
        ("<s>Hello", &[1, 16230], &[1, 22557]),
        ("a<s>b", &[264, 1, 28726], &[264, 1, 287]),
        (" a </s> b", &[264, 28705, 2, 287], &[264, 28705, 2, 287]),
        ("Hello<unk>", &[22557, 0], &[22557, 0]),
        ("<s> a", &[1, 264], &[1, 264]),
    ];
    let mut report = Report::default();
    for (scheme, column) in [("first", 0), ("always", 1)] {
        let tokenizer = from_json(as_json(MODEL, Layout::Metaspace(scheme)).to_string().as_bytes());
        for (text, first, always) in cases {
            let expected = [first, always][column].to_vec();
            report.check(|| format!("{scheme}: {text:?}"), tokenizer.encode(text).unwrap(), expected);
        }
    }
    report.finish();
}

/// A model without its byte pieces. The ids and texts are sentencepiece's, and the ids those of `tokenizers` too.
#[test]
fn without_byte_pieces_text_may_be_unknown() {
    let model = as_json::without_bytes(DEMO_MODEL);
    let mut json = as_json(&model, Layout::Prepend);
    json["model"]["byte_fallback"] = false.into();
    let (model, json) = (from_model(&model), from_json(json.to_string().as_bytes()));

    let cases: [(&str, &[u32], &str); 4] = [
        ("the 🙂🙂é house", &[9, 1721, 0, 557], "the  \u{2047}  house"),
        ("🙂", &[1721, 0], " \u{2047} "),
        (" 🙂 a\n", &[1721, 1721, 0, 5, 0], "  \u{2047}  a \u{2047} "),
        ("a🙂", &[5, 0], "a \u{2047} "),
    ];
    let mut report = Report::default();
    for (text, ids, decoded) in cases {
        for tokenizer in [&model, &json] {
            report.check(|| format!("encode {text:?}"), &tokenizer.encode(text).unwrap()[..], ids);
            report.check(|| format!("decode {text:?}"), tokenizer.decode(ids), decoded.to_owned());
        }
    }
    report.finish();
}

/// A model that puts no space in front of a text. The ids are sentencepiece's.
#[test]
fn without_a_space_in_front() {
    let no_dummy_prefix = [0x1a, 2, 0x18, 0];
    let tokenizer = from_model(&[DEMO_MODEL, &no_dummy_prefix].concat());
    let cases: [(&str, &[u32]); 6] = [
        ("the house", &[1201, 813]),
        (" the house", &[265, 813]),
        ("  x", &[1977, 1977, 2013]),
        ("", &[]),
        (" ", &[1977]),
        ("🙂 the", &[243, 162, 156, 133, 265]),
    ];
    let mut report = Report::default();
    for (text, ids) in cases {
        report.check(|| format!("encode {text:?}"), &tokenizer.encode(text).unwrap()[..], ids);
        report.check(|| format!("decode {text:?}"), tokenizer.decode(ids), text.to_owned());
    }
    report.finish();
}

#[test]
fn bos_stands_in_front_once() {
    let mut report = Report::default();
    for Variant { name, tokenizer, .. } in variants() {
        for text in
            goldens().encode.iter().map(|row| &*row.text).chain(["<s>", "<s><s>", "<s>Hi", "<s> <s>Hi"])
        {
            let ids = tokenizer.encode_prompt(text).unwrap();
            report.check(|| format!("{name}: {text:?}"), (ids[0], ids.get(1) == Some(&1)), (1, false));
            if tokenizer.encode(text).unwrap().first() != Some(&1) {
                report.check(|| format!("{name}: {text:?}"), &ids[1..], &tokenizer.encode(text).unwrap()[..]);
            }
        }
        report.check(|| format!("{name}: <s>"), tokenizer.encode_prompt("<s>").unwrap(), vec![1]);
    }
    report.finish();
}

#[test]
fn both_demo_files_agree() {
    let text = include_str!("../fixtures/demo/heldout.txt");
    let (model, json) = (from_model(DEMO_MODEL), from_json(DEMO_JSON));
    let ids = model.encode_prompt(text).unwrap();
    assert_eq!(ids, json.encode_prompt(text).unwrap());
    assert_eq!(ids.len(), 11_497);
    assert_eq!(model.decode(&ids), text);
    assert_eq!(json.decode(&ids), text);
    assert_eq!((model.vocab_size(), json.vocab_size()), (2048, 2048));
    for id in 0..2048 {
        assert_eq!(model.piece(id), json.piece(id));
    }
}

#[test]
fn an_id_beyond_the_vocabulary_has_no_text() {
    let tokenizer = from_model(DEMO_MODEL);
    assert_eq!(tokenizer.decode(&[1, 2048, 1498, u32::MAX]), "Alice");
    let mut decoder = tokenizer.decoder();
    assert_eq!(decoder.push(3 + 0xc3), "");
    assert_eq!(decoder.unknown(), None);
    assert_eq!(decoder.push(2048), "");
    assert_eq!(decoder.push(u32::MAX), "");
    assert_eq!(decoder.unknown(), Some((2048, 2)));
    assert_eq!(decoder.push(3 + 0xa9), "é");
    assert_eq!(decoder.finish(), "");
}

/// Nothing has fewer ids than its bytes say: a prompt beyond every context is known as such unread.
#[test]
fn the_least_number_of_ids() {
    let tokenizer = demo();
    let pieces = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.piece(id));
    let repeated = pieces.max_by_key(|piece| piece.len()).unwrap().replace('▁', " ").repeat(1000);
    for text in ["", "a", " ", &repeated, &"The old man and the sea. ".repeat(400), &"🦀日".repeat(99)] {
        let (least, found) = (tokenizer.least_ids(text), tokenizer.encode_prompt(text).unwrap().len());
        assert!(least <= found, "{least} and {found} of {} bytes", text.len());
        assert!(text.len() < 1000 || least * 50 > text.len(), "{least} says something");
    }
    // However many BOS tokens are written, they are one.
    let many = " ".to_owned() + &tokenizer.piece(tokenizer.bos()).unwrap().repeat(1000);
    assert_eq!((tokenizer.least_ids(&many), tokenizer.least_ids(many.trim())), (0, 0));
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let tokenizer = from_model(MODEL);
    let (prompt, next) = (tokenizer.encode_prompt("Hello").unwrap(), tokenizer.encode("world").unwrap());
    let mut decoder = tokenizer.decoder_after(&prompt);
    assert_eq!(decoder.push(next[0]), " world");
    assert_eq!(tokenizer.decoder().push(next[0]), "world");
    let mut decoder = tokenizer.decoder_after(&[tokenizer.bos()]);
    assert_eq!(decoder.push(next[0]), "world");
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = tokenizer.decoder();
    let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
    text += &decoder.finish();
    text
}

#[test]
fn a_tokenizer_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
}

/// Ids with many bytes among them, and among those many that begin or continue a character.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    let id =
        prop_oneof![0..2048u32, 0..259u32, (3 + 0x80)..(3 + 0xc0u32), (3 + 0xc0)..=(3 + 0xffu32), 0..3u32];
    prop::collection::vec(id, 0..24)
}

fn demo() -> &'static Tokenizer {
    static DEMO: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    DEMO.get_or_init(|| from_model(DEMO_MODEL))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn streaming_is_decoding(ids in ids(), split in any::<prop::sample::Index>()) {
        let whole = demo().decode(&ids);
        prop_assert_eq!(&stream(demo(), &ids), &whole);

        let (prompt, rest) = ids.split_at(split.index(ids.len() + 1));
        let mut decoder = demo().decoder();
        let mut text: String = prompt.iter().map(|&id| decoder.push(id)).collect();
        let mut decoder = demo().decoder_after(prompt);
        text.extend(rest.iter().map(|&id| decoder.push(id)));
        text += &decoder.finish();
        prop_assert_eq!(text, whole);
    }

    #[test]
    fn decoding_undoes_encoding(text in "\\PC{0,40}|[ a-z<>/\\[\\]s\n▁é🙂]{0,40}") {
        let ids = demo().encode_ordinary(&text).unwrap();
        // A literal `▁` is the space from here on, as in sentencepiece.
        prop_assert_eq!(demo().decode(&ids), text.replace('▁', " "));
    }
}
