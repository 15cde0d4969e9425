//! Texts and files of any size: memory in proportion, and a sentence where there is none.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Said, mixtral, run};

/// The command with so many MB of address space.
fn limited(megabytes: usize, line: &str, values: &[&str], input: Option<&Path>) -> Said {
    let inner = mixtral(line, values);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v $0; exec \"$@\"", &(megabytes << 10).to_string()]);
    command.arg(inner.get_program()).args(inner.get_args());
    // Backtraces read all of the debug information.
    command.env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "0").env("MALLOC_ARENA_MAX", "1");
    command.stdin(input.map_or_else(Stdio::null, |path| File::open(path).unwrap().into()));
    command.output().unwrap().into()
}

/// The least number of MB, in steps, in which a command succeeds.
fn enough(line: &str, values: &[&str], input: Option<&Path>) -> usize {
    let limits = (16..4096).step_by(16);
    let mut fits = limits.filter(|&megabytes| limited(megabytes, line, values, input).status == Some(0));
    fits.next().unwrap_or_else(|| panic!("{line}: no limit is enough"))
}

/// From so many MB on, what is too much is an error that is told, whatever there is no memory for.
#[track_caller]
fn is_told(least: usize, line: &str, values: &[&str], input: Option<&Path>) {
    let mut told = 0;
    for more in [4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192] {
        let said = limited(least + more, line, values, input);
        assert!(matches!(said.status, Some(0 | 1)), "{line}, {more} MB more: {said:?}");
        if said.status == Some(1) {
            told += 1;
            assert!(said.err.starts_with("error: "), "{line}, {more} MB more: {}", said.err);
        }
    }
    assert!(told > 0, "{line}: there was memory for all");
}

#[test]
fn a_line_of_a_chat() {
    let dir = tempfile::tempdir().unwrap();
    let line = dir.path().join("line");
    fs::write(&line, "Hi\n").unwrap();
    let least = enough("chat -n 1 -t 0", &[], Some(&line));
    fs::write(&line, "x".repeat(16_000_000)).unwrap();
    is_told(least, "chat -n 1 -t 0", &[], Some(&line));
}

#[test]
fn logits_to_route() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("logits");
    let path = file.to_str().unwrap();
    let line = "route --logits {} --router top-k:k=1";
    fs::write(&file, "{\"logits\": [[1, 2]]}").unwrap();
    let least = enough(line, &[path], None);
    let row = vec!["0"; 1000].join(",");
    for rows in [vec![row; 10_000].join("],["), vec!["1,2"; 1_000_000].join("],[")] {
        fs::write(&file, format!("{{\"logits\": [[{rows}]]}}")).unwrap();
        is_told(least, line, &[path], None);
        is_told(least, &format!("{line} --json"), &[path], None);
    }
    let ids = vec!["7"; 5_000_000].join(",");
    fs::write(&file, format!("{{\"logits\": [[1, 2]], \"token_ids\": [{ids}]}}")).unwrap();
    is_told(least, line, &[path], None);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let path = file.path().to_str().unwrap();
    let said = run("route --logits {} --router top-k:k=1", &[path]);
    assert_eq!(said.err, format!("error: {path}: expected at most 1073741824 bytes, found 1099511627776\n"));
}

#[test]
fn a_layer_of_many_tokens() {
    let least = enough("bench --layer 8x8x2x1 --tokens 1 --rounds 1", &[], None);
    is_told(least, "bench --layer 8x8x2x1 --tokens 1000000 --rounds 1", &[], None);
    let said = limited(least, "bench --layer 8x8x2x1 --tokens 100000000 --rounds 1", &[], None);
    assert!(said.status == Some(1) && said.err.starts_with("error: "), "{said:?}");
}

#[test]
fn tokens_take_a_few_times_the_size_of_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "Hi").unwrap();
    let least = enough("tokenize -", &[], Some(&text));
    let book = fs::read_to_string(crate::demo().join("heldout.txt")).unwrap();
    let size = 8 << 20;
    let book: String = book.chars().cycle().take(size).collect();
    fs::write(&text, &book).unwrap();
    let said = limited(least + 6 * (book.len() >> 20), "tokenize -", &[], Some(&text));
    assert_eq!(said.status, Some(0), "{}", said.err);
    // The context is looked at before the text is.
    let said = run("generate -f {}", &[text.to_str().unwrap()]);
    assert_eq!(said.status, Some(1));
    let expected = "error: prompt: expected at most 4096 tokens, the context, found at least ";
    assert!(said.err.starts_with(expected), "{}", said.err);
}

#[test]
fn weights_of_a_layer() {
    let least = enough("bench --layer 16x16x2x1 --tokens 1 --rounds 1", &[], None);
    // 64 MB a matrix.
    is_told(least, "bench --layer 2048x16384x2x1 --tokens 1 --rounds 1", &[], None);
}

#[test]
fn a_text_to_tokenize() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "Hi").unwrap();
    let least = enough("tokenize -", &[], Some(&text));
    let book = fs::read_to_string(crate::demo().join("heldout.txt")).unwrap();
    let book: String = book.chars().cycle().take(24 << 20).collect();
    let one_word = "a".repeat(4 << 20);
    for (text_of, line) in
        [(&book, "tokenize -"), (&book, "tokenize --json -"), (&one_word, "tokenize --no-bos -")]
    {
        fs::write(&text, text_of).unwrap();
        is_told(least, line, &[], Some(&text));
    }
    let message = serde_json::json!([{ "role": "user", "content": book }]);
    fs::write(&text, message.to_string()).unwrap();
    is_told(least, "tokenize --chat-format v1 --chat {}", &[text.to_str().unwrap()], None);
    let messages = vec![serde_json::json!({ "role": "user", "content": "Hi" }); 100_000];
    fs::write(&text, serde_json::to_string(&messages).unwrap()).unwrap();
    is_told(least, "tokenize --chat-format v1 --chat {}", &[text.to_str().unwrap()], None);
}

/// A safetensors file with so many tensors of one number beside those of the demo.
fn with_tensors(dir: &Path, more: usize) {
    for name in ["config.json", "tokenizer.model"] {
        fs::copy(crate::demo().join(name), dir.join(name)).unwrap();
    }
    let file = fs::read(crate::demo().join("model.safetensors")).unwrap();
    let (len, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let mut header = String::from_utf8(header.to_vec()).unwrap().trim_end().to_owned();
    assert_eq!(header.pop(), Some('}'));
    for (i, end) in (0..more).zip((data.len() + 4..).step_by(4)) {
        let entry =
            format!(r#","extra.{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{end}]}}"#, end - 4);
        header.push_str(&entry);
    }
    header.push('}');
    let zeros = vec![0; 4 * more];
    let parts = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data, &zeros];
    fs::write(dir.join("model.safetensors"), parts.concat()).unwrap();
}

#[test]
fn a_list_of_tensors() {
    let dir = tempfile::tempdir().unwrap();
    with_tensors(dir.path(), 0);
    let out = dir.path().join("out.gguf");
    let (path, out) = (dir.path().to_str().unwrap(), out.to_str().unwrap());
    let inspect = "inspect --json {}";
    let convert = "convert -j 1 --model {} --out {}";
    let (of_inspect, of_convert) = (enough(inspect, &[path], None), enough(convert, &[path, out], None));
    with_tensors(dir.path(), 150_000);
    is_told(of_inspect, inspect, &[path], None);
    is_told(of_convert, convert, &[path, out], None);
}

#[test]
fn a_list_of_texts_in_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let path = file.to_str().unwrap();
    let written = run("convert -j 1 --out {}", &[path]);
    assert_eq!(written.status, Some(0), "{}", written.err);
    let least = enough("inspect {}", &[path], None);
    let mut bytes = fs::read(&file).unwrap();
    // One more key, in front of the others.
    let keys = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 1;
    bytes[16..24].copy_from_slice(&keys.to_le_bytes());
    let key = "gen.more";
    let mut more = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
    more.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
    more.extend(1_000_000u64.to_le_bytes());
    for i in 0..1_000_000 {
        let text = format!("{i:07}x");
        more.extend((text.len() as u64).to_le_bytes());
        more.extend(text.as_bytes());
    }
    // What comes behind is as far from a multiple of 32 as before.
    assert_eq!(more.len() % 32, 0, "{}", more.len());
    bytes.splice(24..24, more);
    fs::write(&file, bytes).unwrap();
    assert_eq!(run("inspect {}", &[path]).status, Some(0));
    is_told(least, "inspect {}", &[path], None);
    is_told(least, "convert -j 1 --dtype f32 --model {} --out {}", &[path, &format!("{path}.out")], None);
}
