//! Writes a sentencepiece model as `tokenizer.json`, as the published conversion does, or without byte pieces.
//!
//! Reads the model by itself, so that the library's reader is not asked to confirm its own reading.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Who puts `▁` in front, and how a merge is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// A normaliser; merges as `"a b"`. Mixtral's published file.
    Prepend,
    /// The pre-tokeniser with the given scheme; merges as `["a", "b"]`.
    Metaspace(&'static str),
}

pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: u8,
}

pub(crate) fn as_json(model: &[u8], layout: Layout) -> Value {
    let pieces = pieces(model);
    let vocab: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (&*piece.text, id)).collect();

    let mut merges = Vec::new();
    for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.kind == 1) {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(&a), Some(&b)) = (vocab.get(left), vocab.get(right)) {
                merges.push((-piece.score, id, a, b));
            }
        }
    }
    merges.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let merges: Vec<Value> = merges
        .into_iter()
        .map(|(_, _, a, b)| match layout {
            Layout::Prepend => json!(format!("{} {}", pieces[a].text, pieces[b].text)),
            Layout::Metaspace(_) => json!([pieces[a].text, pieces[b].text]),
        })
        .collect();

    let prepend = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ] });
    let (normalizer, pre_tokenizer) = match layout {
        Layout::Prepend => (prepend, Value::Null),
        Layout::Metaspace(scheme) => (
            Value::Null,
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false }),
        ),
    };
    let special = |id: usize| {
        json!({
            "id": id, "content": pieces[id].text, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [], "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// The model without its byte pieces and without falling back on them.
pub(crate) fn without_bytes(mut model: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    while let [0x0a, len, ..] = model {
        let (piece, after) = model.split_at(2 + usize::from(*len));
        if !piece.ends_with(&[0x18, 6]) {
            kept.extend_from_slice(piece);
        }
        model = after;
    }
    kept.extend_from_slice(model);
    // TrainerSpec.byte_fallback: false
    kept.extend_from_slice(&[0x12, 3, 0x98, 2, 0]);
    kept
}

/// The pieces of an undamaged model: field 1 of the file, holding a text, a score and perhaps a type.
pub(crate) fn pieces(mut file: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let [0x0a, len, rest @ ..] = file {
        let (mut message, after) = rest.split_at(usize::from(*len));
        assert!(*len < 0x80, "a long piece");
        let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
        while let [key, rest @ ..] = message {
            message = match (key, rest) {
                (0x0a, [len, rest @ ..]) => {
                    let (text, rest) = rest.split_at(usize::from(*len));
                    piece.text = String::from_utf8(text.to_vec()).unwrap();
                    rest
                }
                (0x15, [a, b, c, d, rest @ ..]) => {
                    piece.score = f32::from_le_bytes([*a, *b, *c, *d]);
                    rest
                }
                (0x18, [kind, rest @ ..]) => {
                    piece.kind = *kind;
                    rest
                }
                other => panic!("an unknown field: {other:?}"),
            };
        }
        pieces.push(piece);
        file = after;
    }
    pieces
}
