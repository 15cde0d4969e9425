//! `mixtral chat`.

use std::fs;

use serde_json::{Value, json};

use crate::{commas, demo, mixtral, output, run, run_with_input};

/// The ids that `tokenize --chat` gives, of a model or the demo.
fn chat_ids(model: Option<&str>, messages: &Value) -> Vec<u32> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), messages.to_string()).unwrap();
    let path = file.path().to_str().unwrap();
    let found = match model {
        Some(dir) => output("tokenize --json --model {} --chat {}", &[dir, path]),
        None => output("tokenize --json --chat {}", &[path]),
    };
    let tokens: Value = serde_json::from_str(&found).unwrap();
    tokens["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
}

#[test]
fn answers_are_what_follows_the_whole_chat() {
    let line = "chat -t 0 -n 12 --system {}";
    let said = run_with_input(mixtral(line, &["Be kind."]), b"Who are you?\n\nWhere is the whale?\r\n");
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert_eq!(said.err, "(stopped at --max-tokens)\n(stopped at --max-tokens)\n");

    // The same by hand: the ids of each answer, then EOS and the next turn.
    let system = json!({"role": "system", "content": "Be kind."});
    let user = |content: &str| json!({"role": "user", "content": content});
    let mut ids = chat_ids(None, &json!([system, user("Who are you?")]));
    let mut expected = String::new();
    for turn in 0..2 {
        if turn == 1 {
            ids.push(2);
            ids.extend(&chat_ids(None, &json!([user("Where is the whale?")]))[1..]);
        }
        let drawn = output("generate --ids {} --print-ids -t 0 -n 12", &[&commas(&ids)]);
        let drawn: Vec<u32> = drawn.trim().split(',').map(|id| id.parse().unwrap()).collect();
        ids.extend(&drawn);
        // Text of its own: without the space that `generate` keeps after a prompt.
        let text = output("generate --ids {} -n 0 -t 0", &[&commas(&drawn)]);
        expected.push_str(&text);
    }
    assert_eq!(said.out, expected);
}

#[test]
fn nothing_to_answer() {
    let said = run_with_input(mixtral("chat", &[]), b"\n  \n");
    assert_eq!((&*said.out, &*said.err, said.status), ("", "", Some(0)));
    let said = run_with_input(mixtral("chat -n 3", &[]), b"last line without an end");
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.out.ends_with('\n'));
}

#[test]
fn a_full_context_is_said() {
    let long = "And then? ".repeat(20);
    let said =
        run_with_input(mixtral("chat -t 0 --context 40", &[]), format!("Who are you?\n{long}\n").as_bytes());
    assert_eq!(said.status, Some(1));
    let expected = "(stopped at the context's limit of 40 positions)\n\
                    error: the conversation does not fit into its context: context: expected at most 40 positions, found";
    assert!(said.err.starts_with(expected), "{}", said.err);
}

/// What a chat answers after its oldest turns were left out is what one answers that never had them.
#[test]
fn the_oldest_turns_of_a_long_chat_are_left_out_openly() {
    let command = |turns: &str| run_with_input(mixtral("chat -t 0 --context 40", &[]), turns.as_bytes());
    let all = command("Who are you?\nAnd then?\n");
    assert_eq!(all.status, Some(0), "{}", all.err);
    let left_out = "(left out the oldest turn: all of them do not fit into 40 positions)\n";
    let limit = "(stopped at the context's limit of 40 positions)\n";
    assert_eq!(all.err, [limit, left_out, limit].concat());
    let last = command("And then?\n");
    assert!(all.out.ends_with(&last.out) && all.out.len() > last.out.len(), "{} {}", all.out, last.out);
}

/// A model directory with the demo's tokenizer and a template.
fn with_template(template: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(demo().join("tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    let config = json!({"chat_template": template, "eos_token": "</s>"});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}assistant:";

#[test]
fn the_template_of_a_model_writes_its_chats() {
    let dir = with_template(TEMPLATE);
    let dir = dir.path().to_str().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let chat = json!({"messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi </s>"},
        {"role": "user", "content": "there"},
    ]});
    fs::write(path, chat.to_string()).unwrap();
    let said = run("tokenize --json --model {} --chat {}", &[dir, path]);
    assert_eq!((&*said.err, said.status), ("", Some(0)));
    let tokens: Value = serde_json::from_str(&said.out).unwrap();
    let pieces: Vec<_> = tokens["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    // The template's ends of turns are tokens, that of the message is text.
    assert_eq!(pieces.iter().filter(|&&piece| piece == "</s>").count(), 3, "{pieces:?}");

    // Another format, by its name or as a file.
    let ids = |line: &str, values: &[&str]| {
        let tokens: Value = serde_json::from_str(&output(line, values)).unwrap();
        tokens["ids"].clone()
    };
    fs::write(path, json!([{"role": "user", "content": "Hello"}]).to_string()).unwrap();
    let line = "tokenize --json --model {} --chat-format {} --chat {}";
    assert_eq!(ids(line, &[dir, "v1", path]), ids("tokenize --json {}", &["[INST] Hello [/INST]"]));
    let template = tempfile::NamedTempFile::new().unwrap();
    fs::write(template.path(), "<s>[INST] {{ messages[0].content }} [/INST]").unwrap();
    let found = ids(line, &[dir, template.path().to_str().unwrap(), path]);
    assert_eq!(found, ids("tokenize --json {}", &["[INST] Hello [/INST]"]));
    fs::create_dir(format!("{dir}/additional_chat_templates")).unwrap();
    fs::write(format!("{dir}/additional_chat_templates/short.jinja"), "<s>Hello").unwrap();
    fs::write(format!("{dir}/chat_template.jinja"), "<s>Hello world").unwrap();
    assert_eq!(ids(line, &[dir, "short", path]), ids("tokenize --json {}", &["Hello"]));
}

#[test]
fn answers_by_a_template_are_what_follows_the_whole_chat() {
    let dir = with_template(TEMPLATE);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(demo().join(file), dir.path().join(file)).unwrap();
    }
    let dir = dir.path().to_str().unwrap();
    let line = "chat --model {} -t 0 -n 12 --system {}";
    let said = run_with_input(mixtral(line, &[dir, "Be kind."]), b"Who are you?\nWhere is the whale?\n");
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.err.starts_with("chat format: tokenizer_config.json: chat_template\n"), "{}", said.err);

    let mut messages = vec![json!({"role": "system", "content": "Be kind."})];
    let mut expected = String::new();
    for question in ["Who are you?", "Where is the whale?"] {
        messages.push(json!({"role": "user", "content": question}));
        let ids = chat_ids(Some(dir), &json!(messages));
        let drawn = output("generate --ids {} --print-ids -t 0 -n 12", &[&commas(&ids)]);
        let text = output("generate --ids {} -n 0 -t 0", &[drawn.trim()]);
        messages.push(json!({"role": "assistant", "content": text.strip_suffix('\n').unwrap()}));
        expected.push_str(&text);
    }
    assert_eq!(said.out, expected);
}

#[test]
fn a_format_that_cannot_be_is_said() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    fs::write(path, json!([{"role": "user", "content": "Hello"}]).to_string()).unwrap();
    let raising = with_template("\n{{ raise_exception('not with me') }}");
    let broken = with_template("{% if %}");
    for (line, values, message) in [
        (
            "tokenize --chat-format v3 --chat {}",
            vec![path],
            "error: chat format: expected a vocabulary with the control piece [INST], for Mistral's v3, found one",
        ),
        ("tokenize --chat-format no/such/file --chat {}", vec![path], "error: no/such/file: No such file"),
        (
            "tokenize --model {} --chat {}",
            vec![raising.path().to_str().unwrap(), path],
            "error: tokenizer_config.json: chat_template, line 2: not with me\n",
        ),
        (
            "tokenize --model {} --chat {}",
            vec![broken.path().to_str().unwrap(), path],
            "error: tokenizer_config.json: chat_template, line 1: syntax error: ",
        ),
    ] {
        let said = run(line, &values);
        assert_eq!((&*said.out, said.status), ("", Some(1)), "{line}");
        assert!(said.err.starts_with(message), "{line}: {}", said.err);
    }
}

#[test]
fn a_guess_is_warned_of() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    fs::write(path, json!([{"role": "user", "content": "Hello"}]).to_string()).unwrap();
    let demo = demo();
    let demo = demo.to_str().unwrap();
    let said = run("tokenize --model {} --chat {}", &[demo, path]);
    let warning = "warning: chat format: no template; no [INST] piece in the vocabulary: Mistral's v1, assumed; \
                   --chat-format sets another\n";
    assert_eq!((&*said.err, said.status), (warning, Some(0)));
    let said = run("tokenize --model {} --chat-format v1 --chat {}", &[demo, path]);
    assert_eq!((&*said.err, said.status), ("", Some(0)));
    // Where there is a choice, a chat tells of it.
    let said = run_with_input(mixtral("chat --model {} --chat-format v1 -n 1", &[demo]), b"Hello\n");
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.err.starts_with("chat format: asked for: Mistral's v1\n"), "{}", said.err);
}
