//! The tokenizer's memory is in proportion to the text, and for ordinary text a few times what its tokens take; where it is not to be
//! had, that is an error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use mixtral_model::{Result, Tokenizer};

/// Counts, and refuses one allocation among those that are large.
struct Counting;

thread_local! {
    /// Bytes that are allocated and not freed, and the most there were. What another thread allocated is freed too.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
    /// Large allocations that are still granted before one is refused; none is refused while it is `usize::MAX`.
    static GRANTED: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Bytes of a large allocation.
const LARGE: usize = 1 << 12;

/// Whether this allocation is the one to refuse.
fn refused(bytes: usize) -> bool {
    let granted = GRANTED.get();
    if bytes < LARGE || granted == usize::MAX {
        return false;
    }
    GRANTED.set(granted.wrapping_sub(1));
    granted == 0
}

// SAFETY: every call that is not refused is handed on to the system's allocator as it came; null is how an allocation is refused.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return std::ptr::null_mut();
        }
        LIVE.set(LIVE.get() + layout.size() as isize);
        MOST.set(MOST.get().max(LIVE.get()));
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract, and all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were allocated meanwhile, beyond what there was before.
fn most(run: impl FnOnce()) -> usize {
    let before = LIVE.get();
    MOST.set(before);
    run();
    MOST.get().abs_diff(before)
}

fn tokenizers() -> [(&'static str, Tokenizer); 3] {
    let path = Path::new("tokenizer.json");
    let sentencepiece = include_bytes!("fixtures/tokenizer/tokenizer.model");
    let json = |bytes: &[u8]| Tokenizer::from_json(bytes, path).unwrap();
    [
        ("sentencepiece", Tokenizer::from_sentencepiece(sentencepiece, path).unwrap()),
        ("json", json(include_bytes!("fixtures/demo/tokenizer.json"))),
        ("bytes", json(byte_level().to_string().as_bytes())),
    ]
}

/// A byte-level tokenizer with GPT-2's words, and with the begin and the end of a sequence, which the file lacks.
fn byte_level() -> serde_json::Value {
    let goldens: serde_json::Value =
        serde_json::from_slice(include_bytes!("fixtures/tokenizer/byte_level.json")).unwrap();
    let mut file = goldens["file"].clone();
    file["pre_tokenizer"]["use_regex"] = true.into();
    let begin = serde_json::json!({ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } });
    file["post_processor"] = serde_json::json!({ "type": "TemplateProcessing",
        "single": [begin, { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [],
        "special_tokens": { "<|begin|>": { "id": "<|begin|>", "ids": [1200], "tokens": ["<|begin|>"] } } });
    let end = serde_json::json!({ "id": 1203, "content": "</s>", "special": true });
    file["added_tokens"].as_array_mut().unwrap().push(end);
    file
}

/// Each large allocation that encoding makes is refused in turn.
#[test]
fn memory_that_is_not_to_be_had_is_an_error() {
    type Encode = fn(&Tokenizer, &str) -> Result<Vec<u32>>;
    let ways: [(&str, Encode); 3] = [
        ("encode", |tokenizer, text| tokenizer.encode(text)),
        ("encode_prompt", |tokenizer, text| tokenizer.encode_prompt(text)),
        ("encode_ordinary", |tokenizer, text| tokenizer.encode_ordinary(text)),
    ];
    let english = &include_str!("fixtures/demo/heldout.txt")[..1 << 13];
    let texts = [english.to_owned(), "a".repeat(1 << 13), " ".repeat(1 << 13), "<s>".repeat(1 << 11)];
    for (name, tokenizer) in tokenizers() {
        for ((way, encode), text) in ways.iter().flat_map(|way| texts.iter().map(move |text| (way, text))) {
            let case = format!("{name}, {way}, {text:.3}");
            let expected = encode(&tokenizer, text).unwrap();
            let mut refusals = 0;
            loop {
                GRANTED.set(refusals);
                let result = encode(&tokenizer, text);
                let left = GRANTED.replace(usize::MAX);
                // Not wrapped around: there was nothing left to refuse.
                if left <= refusals {
                    assert_eq!(result.unwrap(), expected, "{case}");
                    break;
                }
                let error =
                    result.expect_err(&format!("{case}: refusal {refusals} was not told")).to_string();
                assert!(error.contains("no memory for"), "{case}: {error}");
                refusals += 1;
            }
            assert!(refusals > 0, "{case}");
        }
    }
}

#[test]
fn memory_is_in_proportion_to_the_text() {
    let english = include_str!("fixtures/demo/heldout.txt");
    let texts = [
        ("English", english),
        ("one letter", "a"),
        ("one word", "internationalization"),
        ("spaces", " "),
        ("bytes", "\u{10ffff}"),
        ("tokens", "<s>"),
        ("lines", "\n"),
    ];
    for (name, tokenizer) in &tokenizers()[..2] {
        for (text, part) in texts {
            let of = |bytes: usize| part.repeat(bytes / part.len() + 1);
            let measured = |text: &str| {
                let ids = most(|| drop(tokenizer.encode(text).unwrap()));
                let ordinary = most(|| drop(tokenizer.encode_ordinary(text).unwrap()));
                ids.max(ordinary)
            };
            let (small, large) = (of(1 << 17), of(1 << 18));
            let (small, large) = (measured(&small), measured(&large));
            // Lists that double may be nearly empty at one length and full at the other.
            assert!(large <= 4 * small + (1 << 14), "{name}, {text}: {small} and {large} bytes");
            // A symbol and a candidate are 24 bytes each; a list that moves to twice its length is there one and a half times, and
            // each of both may be half full.
            let bound = if text == "English" { 12 } else { 160 };
            assert!(large <= bound * (1 << 18), "{name}, {text}: {} bytes a byte", large >> 18);
        }
    }
}
