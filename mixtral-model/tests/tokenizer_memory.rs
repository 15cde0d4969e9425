//! The tokenizer's memory is in proportion to the text, and for ordinary text a few times what its tokens take.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use mixtral_model::Tokenizer;

struct Counting;

/// Bytes that are allocated and not freed, and the most there were.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract, and all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were allocated meanwhile, beyond what there was before.
fn most(run: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    run();
    MOST.load(Ordering::Relaxed) - before
}

/// One test, since others beside it would be counted too.
#[test]
fn memory_is_in_proportion_to_the_text() {
    let path = Path::new("tokenizer.json");
    let sentencepiece =
        Tokenizer::from_sentencepiece(include_bytes!("fixtures/tokenizer/tokenizer.model"), path).unwrap();
    let json = Tokenizer::from_json(include_bytes!("fixtures/demo/tokenizer.json"), path).unwrap();
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
    for (name, tokenizer) in [("sentencepiece", sentencepiece), ("json", json)] {
        for (text, part) in texts {
            let of = |bytes: usize| part.repeat(bytes / part.len() + 1);
            let measured = |text: &str| {
                let ids = most(|| drop(tokenizer.encode(text)));
                let ordinary = most(|| drop(tokenizer.encode_ordinary(text)));
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
