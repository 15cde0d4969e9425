//! Tokenizers that people have, after public reports; see `fixtures/cases/README.md`.

use std::fs;
use std::path::PathBuf;

use mixtral_model::{Error, Tokenizer};

use crate::{DEMO_JSON, Report};

fn dir(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases").join(case).join("model")
}

fn open(case: &str) -> Tokenizer {
    Tokenizer::from_dir(&dir(case)).unwrap()
}

/// Checks prompts and says nothing against the files.
#[track_caller]
fn check(tokenizer: &Tokenizer, cases: &[(&str, &[u32])]) {
    let mut report = Report::default();
    for (text, ids) in cases {
        report.check(|| format!("{text:?}"), &tokenizer.encode_prompt(text).unwrap()[..], ids);
    }
    report.finish();
    assert_eq!(tokenizer.warnings(), [""; 0]);
}

#[test]
fn case_03_added_tokens_beside_tokenizer_model() {
    let tokenizer = open("03-added-tokens-beside-tokenizer-model");
    check(
        &tokenizer,
        &[
            (
                "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
                &[1, 2049, 618, 271, 13, 2011, 532, 1981, 472, 2048, 1977, 13, 2049, 897, 480, 419, 13],
            ),
            ("a<|im_end|>b <|im_start|>c", &[1, 261, 2048, 272, 1977, 2049, 278]),
            ("a </s> b", &[1, 261, 1977, 2, 1977, 272]),
        ],
    );
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (1, 2048, 2050));
    assert_eq!(tokenizer.id_of("<|im_start|>"), Some(2049));
    assert_eq!([2, 2048, 2049].map(|id| tokenizer.is_control(id)), [true, true, false]);
    // Nobody forges a turn, special or not.
    assert!(
        !tokenizer
            .encode_ordinary("<|im_end|><|im_start|></s>")
            .unwrap()
            .iter()
            .any(|&id| id >= 2048 || id == 2)
    );
}

/// The model has a row more than the tokenizer has pieces.
#[test]
fn case_05_an_id_that_the_model_may_draw_never_ends_a_run() {
    let tokenizer = open("03-added-tokens-beside-tokenizer-model").for_model(2051).unwrap();
    let mut decoder = tokenizer.decoder_after(&tokenizer.encode_prompt("Alice was").unwrap());
    let drawn: Vec<_> = [2049, 2050, 2048, 2049].into_iter().map(|id| decoder.push(id)).collect();
    assert_eq!(drawn, ["<|im_start|>", "", "", "<|im_start|>"]);
    assert_eq!(decoder.unknown(), Some((2050, 1)));
    assert_eq!(tokenizer.warnings(), [""; 0]);
}

#[test]
fn case_08_version_3_of_mistrals_tokenizer() {
    let tokenizer = open("08-mixtral-8x22b-instruct-tokenizer-model");
    check(
        &tokenizer,
        &[
            ("Hello there", &[1, 23325, 1504]),
            ("[INST] hi [/INST]", &[1, 3, 29473, 12782, 29473, 4]),
            ("a [REFERENCE_DOC_7]b", &[1, 1032, 29473, 763, 29494]),
        ],
    );
    assert_eq!(tokenizer.vocab_size(), 32768);
    assert_eq!(
        ["[INST]", "[/INST]", "[REFERENCE_DOC_7]"].map(|text| tokenizer.id_of(text)),
        [Some(3), Some(4), Some(763)]
    );
    assert_eq!([3, 4, 763].map(|id| tokenizer.is_control(id)), [true, true, false]);
    // As sentencepiece: user-defined pieces are recognised, control pieces are not.
    assert_eq!(
        tokenizer.encode_ordinary("a [REFERENCE_DOC_7]b[INST]").unwrap(),
        [1032, 29473, 763, 29494, 29560, 17057, 29561]
    );
    assert_eq!(tokenizer.decode(&[1, 3, 23325, 763, 1504, 4, 2]), "Hello[REFERENCE_DOC_7] there");
}

#[test]
fn case_10_control_text_does_not_depend_on_the_file() {
    let ids = [1, 1977, 94, 2003, 2023, 2010, 2007, 96, 289, 1983, 1977, 94, 50, 2003, 2023, 2010, 2007, 96];
    let from = dir("10-control-text-depends-on-the-file");
    for files in [&["tokenizer.model", "tokenizer.json"][..], &["tokenizer.model"], &["tokenizer.json"]] {
        let copy = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["tokenizer_config.json"]) {
            fs::copy(from.join(file), copy.path().join(file)).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(copy.path()).unwrap();
        check(
            &tokenizer,
            &[
                ("<s>[INST] hi [/INST]", &ids),
                ("[INST] hi [/INST]", &ids),
                ("a </s> b", &[1, 261, 1977, 2, 1977, 272]),
            ],
        );
        assert_eq!(tokenizer.encode("<s>[INST] hi [/INST]").unwrap(), ids, "{files:?}");
    }
}

#[test]
fn case_11_no_bos_where_the_files_say_so() {
    let tokenizer = open("11-add-bos-token-false");
    check(&tokenizer, &[("Hello world", &[502, 286, 1981, 924]), ("<s> x", &[1, 1977, 1977, 2013])]);
}

#[test]
fn case_12_saved_by_transformers_5() {
    let tokenizer = open("12-tokenizer-json-saved-by-transformers-5");
    check(
        &tokenizer,
        &[
            ("Hello world", &[1, 502, 286, 1981, 924]),
            (" x", &[1, 1977, 1977, 2013]),
            ("a </s> b", &[1, 261, 1977, 2, 1977, 272]),
        ],
    );
}

#[test]
fn case_13_white_space_beside_a_token_is_its_own() {
    let tokenizer = open("13-added-tokens-with-lstrip-rstrip");
    check(&tokenizer, &[("Hello world", &[1, 502, 286, 1981, 924]), ("a </s> b", &[1, 261, 2, 272])]);
}

#[test]
fn case_14_a_token_beyond_the_model_is_refused_where_it_is_written() {
    let dir = dir("14-pad-token-beyond-the-model");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.encode_prompt("a[PAD]b").unwrap(), [1, 261, 2048, 272]);
    let file = dir.join("tokenizer.json").display().to_string();

    let tokenizer = tokenizer.for_model(2048).unwrap();
    assert_eq!(
        tokenizer.warnings(),
        [format!(
            "{file}: token 2048 \"[PAD]\" is beyond the model, which has 2048 ids; text with it cannot be read"
        )]
    );
    assert_eq!(tokenizer.encode_prompt("Hello world").unwrap(), [1, 502, 286, 1981, 924]);
    let error = tokenizer.encode_prompt("a[PAD]b").unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{file}: token 2048 \"[PAD]\": expected an id below 2048, the model's vocab_size")
    );
    assert!(tokenizer.check(&[1, 2047]).is_ok());
    assert!(tokenizer.check(&[1, u32::MAX]).unwrap_err().to_string().contains("token 4294967295: expected"));

    // Pieces that any text is made of are another matter.
    let error = Tokenizer::from_dir(&dir).unwrap().for_model(2047).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{file}: vocab: expected ids below 2047, the model's vocab_size, found pieces up to 2047")
    );
}

#[test]
fn case_15_ids_of_added_tokens_have_no_gaps() {
    let dir = dir("15-gap-in-added-token-ids");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.encode("Hello world").unwrap(), [502, 286, 1981, 924]);
    assert_eq!(tokenizer.encode("a<|im_end|>b[PAD]").unwrap(), [261, 2049, 272, 2048]);
    let file = dir.join("tokenizer.json").display().to_string();
    assert_eq!(
        tokenizer.warnings(),
        [format!(
            "{file}: added_tokens: \"<|im_end|>\": id 2051 leaves a gap; it is 2049, which is how Transformers counts"
        )]
    );
}

#[test]
fn case_16_metaspace_as_it_was_written_once() {
    let tokenizer = open("16-old-metaspace");
    check(
        &tokenizer,
        &[
            ("Hello world", &[1, 502, 286, 1981, 924]),
            (" x", &[1, 1977, 2013]),
            ("a </s> b", &[1, 261, 1977, 2, 272]),
            ("<s>[INST]", &[1, 94, 2003, 2023, 2010, 2007, 96]),
        ],
    );
}

#[test]
fn case_17_byte_level_tokenizer_of_a_llama_3_merge() {
    let tokenizer = open("17-byte-level-tokenizer-of-a-llama-3-merge");
    check(
        &tokenizer,
        &[
            ("Hello world", &[42, 71, 293, 81, 493, 316]),
            ("a漢字", &[67, 165, 123, 98, 164, 258, 248]),
            ("cafés", &[69, 67, 72, 130, 105, 85]),
            ("a <|eot_id|> x", &[67, 223, 2, 223, 90]),
        ],
    );
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (0, 2, None));
    assert_eq!(tokenizer.decode(&[0, 67, 165, 123, 98, 2, 223, 90]), "a漢 x");
}

#[test]
fn case_29_a_git_lfs_pointer_is_named() {
    let copy = tempfile::tempdir().unwrap();
    let pointer = dir("29-lfs-pointer-as-tokenizer-model").join("tokenizer.model");
    fs::write(copy.path().join("tokenizer.json"), DEMO_JSON).unwrap();
    for name in ["tokenizer.model", "tokenizer_config.json", "tokenizer.json"] {
        let path = copy.path().join(name);
        fs::copy(&pointer, &path).unwrap();
        let error = Tokenizer::from_dir(copy.path()).unwrap_err();
        assert!(matches!(&error, Error::Tokenizer { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().ends_with("a Git LFS pointer, not the file it stands for"), "{error}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn case_38_added_characters_are_no_base_of_merges() {
    let tokenizer = open("38-added-single-characters");
    check(
        &tokenizer,
        &[
            ("a漢字", &[1, 261, 233, 191, 165, 232, 176, 154]),
            ("cafés", &[1, 278, 1980, 1993, 198, 172, 1985]),
            // Normalised, the token is found after a space alone.
            ("漢 字é", &[1, 2048, 2049, 198, 172]),
        ],
    );
    assert_eq!(tokenizer.decode(&[2048, 2050]), "漢é");
}
