//! `mixtral chat`.

use serde_json::{Value, json};

use crate::{commas, mixtral, output, run_with_input};

/// The ids that `tokenize --chat` gives.
fn chat_ids(messages: &Value) -> Vec<u32> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), messages.to_string()).unwrap();
    let found = output("tokenize --json --chat {}", &[file.path().to_str().unwrap()]);
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
    let mut ids = chat_ids(&json!([system, user("Who are you?")]));
    let mut expected = String::new();
    for turn in 0..2 {
        if turn == 1 {
            ids.push(2);
            ids.extend(&chat_ids(&json!([user("Where is the whale?")]))[1..]);
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
    let said = run_with_input(mixtral("chat -t 0 --context 40", &[]), b"Who are you?\nAnd then?\n");
    assert_eq!(said.status, Some(1));
    let expected = "(stopped at the context's limit of 40 positions)\n\
                    error: the conversation does not fit into its context: context: expected at most 40 positions";
    assert!(said.err.starts_with(expected), "{}", said.err);
}
