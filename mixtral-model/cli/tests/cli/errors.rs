//! What is refused, and how it is said.

use crate::{fixtures, mixtral, run, run_with_input, tiny};

/// Every failing case is reported.
#[track_caller]
fn refuses(status: i32, cases: &[(&str, &[&str], &str)]) {
    let mut failures = Vec::new();
    for (line, values, message) in cases {
        let said = run(line, values);
        if said.status != Some(status) || !said.err.contains(message) || !said.out.is_empty() {
            failures.push(format!("{line}: {said:?}"));
        }
        if !said.err.starts_with("error: ") || said.err.contains("panicked") {
            failures.push(format!("{line}: {}", said.err));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn errors() {
    let tiny = tiny("f32-single");
    let dir = fixtures().join("models");
    let dir = dir.to_str().unwrap();
    refuses(
        1,
        &[
            (
                "generate x --model no/such/dir",
                &[],
                "no/such/dir: expected a model directory or a GGUF file, found nothing of that name",
            ),
            ("generate x --model {}", &[dir], "models: expected a model: config.json"),
            ("inspect no/such", &[], "nothing is downloaded, but `hf download no/such` puts it there"),
            (
                "tokenize x --model {}",
                &[&tiny],
                "expected tokenizer.model, tokenizer.json or tekken.json, found none",
            ),
            ("generate {}", &[""], "prompt: expected some text, found none"),
            ("generate", &[], "prompt: expected some text, found none"),
            ("generate -f no/such/file", &[], "no/such/file: No such file"),
            ("generate --ids 1,2048 --print-ids", &[], "token id 2048: expected less than 2048"),
            ("logits --ids 1,2048", &[], "token id 2048: expected less than 2048"),
            ("generate x --context 4097", &[], "context: expected 1 to 4096 positions, found 4097"),
            ("generate {} --context 2", &["Alice was"], "context: expected at most 2 positions"),
            ("logits --ids 1,2,3 --context 2", &[], "context: expected at most 2 positions"),
            ("generate x -t -1", &[], "temperature: expected 0 or more, found -1"),
            ("generate x -t NaN", &[], "temperature: expected 0 or more, found NaN"),
            ("generate x --top-p 0", &[], "top-p: expected more than 0, at most 1, found 0"),
            ("generate x --min-p 2", &[], "min-p: expected 0 to 1, found 2"),
            ("generate x --repetition-penalty 0", &[], "repetition penalty: expected more than 0"),
            ("generate x --show-routing --routing-layer 4", &[], "expected less than 4"),
            ("perplexity --text no/such/file", &[], "no/such/file: No such file"),
            ("perplexity", &[], "text: expected at least 2 tokens, found 1"),
            ("perplexity --window 1", &[], "window: expected 2 to 4096 tokens, found 1"),
            ("perplexity --window 65 --context 64", &[], "window: expected 2 to 64 tokens, found 65"),
            ("perplexity --window 8 --stride 9", &[], "stride: expected 1 to 8 tokens, found 9"),
            ("tokenize --chat no/such/file", &[], "no/such/file: No such file"),
            ("inspect no/such:Q4_K", &[], "but `hf download no/such` puts it there"),
            ("inspect --json Cargo.toml", &[], "Cargo.toml: "),
            ("generate {} --context 2", &["Alice was"], "context: expected at most 2 positions, found 3"),
            (
                "bench --layer 8x8x2x1 --tokens 1 --rounds 1 --dense --chart no/such/chart.svg",
                &[],
                "error: no/such/chart.svg: No such file",
            ),
        ],
    );
}

#[test]
fn usage() {
    refuses(
        2,
        &[
            ("generate x --ids 1", &[], "cannot be used with"),
            ("generate x --prompt-file y", &[], "cannot be used with"),
            ("inspect x --model y", &[], "cannot be used with"),
            ("generate --ids 1,x", &[], "expected ids with commas between, found \"x\""),
            ("generate --ids {}", &[""], "expected ids with commas between"),
            ("generate --ids -1", &[], "expected ids with commas between, found \"-1\""),
            ("logits --ids 4294967296", &[], "expected ids with commas between"),
            ("generate x --backend sse2", &[], "expected one of portable, avx2"),
            ("generate x --threads 0", &[], "expected a whole number, 1 to 1024"),
            ("generate x --threads 1000000", &[], "expected a whole number, 1 to 1024"),
            ("logits --ids 1 --prefill 0", &[], "expected a whole number, 1 or more"),
            ("generate x --context 0", &[], "expected a whole number, 1 or more"),
            ("generate x --kv-type f8", &[], "possible values: f32, f16, bf16"),
            ("generate x --show-routing=graph", &[], "possible values: text, tokens"),
            ("generate x --routing-layer 1", &[], "--show-routing"),
            ("perplexity --stride 0", &[], "expected a whole number, 1 or more"),
            ("perplexity x", &[], "unexpected argument 'x'"),
            ("perplexity --seed 1", &[], "--router <SPEC>"),
            ("logits", &[], "--ids"),
            // What a command has no use for.
            ("route --list --lock", &[], "unexpected argument '--lock'"),
            ("route --list -m x", &[], "unexpected argument '-m'"),
            ("tokenize x --kv-type f16", &[], "unexpected argument '--kv-type'"),
            ("tokenize x -j 2", &[], "unexpected argument '-j'"),
            ("-j 2 tokenize x", &[], "unexpected argument '-j'"),
            ("inspect --activations int8", &[], "unexpected argument '--activations'"),
            ("convert --out x.gguf --backend avx2", &[], "unexpected argument '--backend'"),
            ("quantize --dtype q8_0 --out x.gguf --context 5", &[], "unexpected argument '--context'"),
            ("bench --layer 8x8x2x1 --model x", &[], "cannot be used with"),
            ("bench --layer 8x8x2x1 --kv-type f16", &[], "cannot be used with"),
            ("generate x -t 1e39", &[], "expected a number up to 3.4028235e38, the greatest of 32 bits"),
            ("generate x --top-p 1e-320", &[], "expected 0 or a number from 1e-45"),
            ("chat --max-tokens 1.5", &[], "expected a whole number, 0 or more"),
            ("generate x --seed -1", &[], "expected a whole number, 0 or more"),
            ("generate x --top-k -1", &[], "expected a whole number, 0 or more"),
            ("generate x --stop {}", &[""], "expected some text"),
            ("generate x --json --print-ids", &[], "cannot be used with"),
            ("generate x -t much", &[], "expected a number"),
            (
                "generate x --max-tokens -1",
                &[],
                "invalid value '-1' for '--max-tokens <N>': expected a whole number, 0 or more",
            ),
        ],
    );
    // The environment is looked at where there is a backend to choose.
    let mut command = mixtral("tokenize x", &[]);
    command.env("MIXTRAL_BACKEND", "sse2");
    assert_eq!(run_with_input(command, b"").status, Some(0));
    let mut command = mixtral("generate x", &[]);
    command.env("MIXTRAL_BACKEND", "sse2");
    let said = run_with_input(command, b"");
    assert_eq!(said.status, Some(2));
    assert!(said.err.contains("expected one of portable, avx2"), "{}", said.err);
}

#[cfg(target_os = "linux")]
#[test]
fn help_that_cannot_be_written() {
    for line in ["--help", "--version", "generate --help"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let said = mixtral(line, &[]).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(1), "{line}: {error}");
        assert!(error.contains("standard output: No space left"), "{line}: {error}");
    }
}

#[test]
fn a_tokenizer_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (fixtures().join("models/f32-single"), fixtures().join("tokenizer"));
    for (from, name) in
        [(&model, "config.json"), (&model, "model.safetensors"), (&tokenizer, "tokenizer.model")]
    {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let dir = dir.path().to_str().unwrap();
    let message = format!(
        "error: {dir}/tokenizer.model: vocab: expected ids below 199, the model's vocab_size, found pieces up to 31999\n"
    );
    for line in ["generate x --model {}", "chat --model {}", "tokenize x --model {}"] {
        assert_eq!(run(line, &[dir]).err, message, "{line}");
    }
}

#[test]
fn chats_that_are_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (text, message) in [
        ("[", "EOF while parsing"),
        (
            "[{\"role\": \"robot\", \"content\": \"x\"}]",
            "chat message 0: expected user or system, found robot",
        ),
        ("[{\"content\": \"x\"}]", "chat message 0: role: expected a text, found null"),
        (
            "{\"messages\": [], \"tool\": []}",
            "chat: expected messages, tools, documents or chat_template_kwargs",
        ),
        ("[]", "chat message 0: expected user, found the end"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let said = run("tokenize --chat {}", &[path]);
        assert_eq!(said.status, Some(1), "{text}");
        assert!(said.err.contains(message), "{text}: {}", said.err);
    }
}

#[test]
fn long_names_are_cut() {
    let name = "é".repeat(3000);
    let said = run("generate x {}", &[&format!("--{name}")]);
    assert!(said.err.contains("é…é") && said.err.chars().count() < 900, "{}", said.err);
    for (line, status) in [
        ("inspect {}", 1),
        ("generate x -m {}", 1),
        ("route --logits x --router {}", 2),
        ("bench --layer 8x8x2x1 --dtype {}", 2),
    ] {
        let said = run(line, &[&name]);
        assert_eq!(said.status, Some(status), "{line}: {}", said.err);
        assert!(said.err.contains("é…é") && said.err.chars().count() < 900, "{line}: {}", said.err);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1], &[0; 4]).unwrap();
    safetensors::serialize_to_file([(name, view)], None, &file).unwrap();
    let said = run("route --logits {} --router relu", &[file.to_str().unwrap()]);
    assert!(
        said.err.contains("expected a tensor logits, found éé") && said.err.contains("é…é"),
        "{}",
        said.err
    );
}
