//! Mistral's formats against mistral-common.

use mixtral_model::{Chat, ChatEvidence, ChatFormat, Message, MistralVersion, Tokenizer};
use serde_json::{Value, json};

use crate::vocabulary::tokenizer;
use crate::{Report, fixtures, json};

/// What is taken here and not by mistral-common: an answer of no words, which a conversation may bring about.
fn is_taken_here_alone(chat: &Value) -> bool {
    let messages = chat.as_array().into_iter().flatten();
    messages.into_iter().any(|message| {
        let nothing = |key: &str| message.get(key).is_none_or(|value| value.is_null() || value == "");
        message["role"] == "assistant" && nothing("content") && nothing("tool_calls")
    })
}

/// What is refused here and ignored by mistral-common: tools where the format has no place for them.
fn is_refused_here_alone(version: MistralVersion, chat: &Value) -> bool {
    version == MistralVersion::V1 && chat.get("tools").is_some_and(|tools| *tools != json!([]))
}

#[test]
fn chats_are_those_of_mistral_common() {
    let goldens = json(&fixtures().join("chat/mistral.json"));
    let mut report = Report::default();
    let mut refused = 0;
    for version in MistralVersion::ALL {
        let tokenizer = tokenizer(version);
        let format = ChatFormat::mistral(version, &tokenizer).unwrap();
        for golden in goldens.as_array().unwrap() {
            let chat = &golden["chat"];
            let found = Chat::from_json(chat.clone()).and_then(|chat| format.encode(&tokenizer, &chat));
            if is_taken_here_alone(chat) || is_refused_here_alone(version, chat) {
                assert_eq!(found.is_ok(), is_taken_here_alone(chat), "{version}: {chat}");
                continue;
            }
            let expected: Option<Vec<u32>> = serde_json::from_value(golden[version.name()].clone()).unwrap();
            refused += usize::from(expected.is_none());
            let said = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
            report.check(|| format!("{version}: {chat} {said}"), found.ok(), expected);
        }
    }
    report.finish();
    assert!(refused > 40, "{refused}");
}

/// The vocabulary of the other tests is made, this one is published.
#[test]
fn chats_of_a_published_vocabulary() {
    let dir = fixtures().join("cases/08-mixtral-8x22b-instruct-tokenizer-model/model");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let format = ChatFormat::choose(&ChatEvidence::default(), &tokenizer).unwrap();
    assert_eq!(format.version(), Some(MistralVersion::V3));
    let mut report = Report::default();
    for golden in json(&fixtures().join("chat/mistral.json")).as_array().unwrap() {
        let Ok(expected) = serde_json::from_value::<Vec<u32>>(golden["v3"].clone()) else { continue };
        let chat = Chat::from_json(golden["chat"].clone()).unwrap();
        report.check(|| golden["chat"].to_string(), format.encode(&tokenizer, &chat).unwrap(), expected);
    }
    report.finish();
}

#[test]
fn chats_of_the_instruct_model() {
    let goldens = json(&fixtures().join("tokenizer/goldens.json"));
    let tokenizer = tokenizer(MistralVersion::V1);
    let format = ChatFormat::choose(&ChatEvidence::default(), &tokenizer).unwrap();
    let mut report = Report::default();
    for golden in goldens["chat"].as_array().unwrap() {
        let chat = Chat::from_json(golden["messages"].clone()).unwrap();
        let expected: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        report.check(|| golden["messages"].to_string(), format.encode(&tokenizer, &chat).unwrap(), expected);
    }
    report.finish();
}

#[test]
fn what_has_no_place_is_named() {
    let user = || json!({"role": "user", "content": "x"});
    let call = |call: Value| json!([user(), {"role": "assistant", "tool_calls": [call]}, user()]);
    let tool = |tool: Value| json!({"messages": [user()], "tools": [tool]});
    for (version, chat, message) in [
        ("v1", json!([]), "chat message 0: expected user, found the end"),
        (
            "v1",
            json!([{"role": "assistant", "content": "x"}]),
            "chat message 0: expected user or system, found assistant",
        ),
        (
            "v1",
            json!([user(), {"role": "critic"}]),
            "chat message 1: expected assistant, system or user, found critic",
        ),
        (
            "v1",
            json!([user(), {"role": "assistant", "content": "x"}]),
            "chat message 2: expected user, found the end",
        ),
        ("v1", tool(json!({})), "tools: expected none in Mistral's v1, found some"),
        (
            "v1",
            json!({"messages": [user()], "documents": [{}]}),
            "documents: expected none in Mistral's v1, found some",
        ),
        (
            "v1",
            json!({"messages": [user()], "chat_template_kwargs": {"enable_thinking": false}}),
            "chat_template_kwargs: expected none in Mistral's v1, found some",
        ),
        (
            "v3",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
            "chat message 0: content: expected parts of text, found {\"type\":\"image_url\",\"image_url\":\"x\"}",
        ),
        (
            "v3",
            json!([{"role": "user", "content": "x", "weight": 1}]),
            "chat message 0: weight: expected none in Mistral's v3, found 1",
        ),
        (
            "v3",
            call(json!({"id": "abcdefghi", "function": {"name": "f", "arguments": 1}})),
            "chat message 1: tool_calls: arguments: expected a text or an object, found 1",
        ),
        (
            "v3",
            call(json!({"function": {"name": "f"}})),
            "chat message 1: tool_calls: id: expected nine letters and digits, found null",
        ),
        (
            "v3",
            call(json!({"id": 1})),
            "chat message 1: tool_calls: expected calls of functions, found {\"id\":1}",
        ),
        (
            "v3",
            tool(json!({"type": "x"})),
            "tools: expected functions, each an object with type and function",
        ),
        (
            "v3",
            tool(json!({"function": {"name": "f", "returns": 1}})),
            "tools: expected no keys but name, description, parameters, strict, found \"returns\"",
        ),
        (
            "v3",
            tool(json!({"function": {"name": ""}})),
            "tools: expected a name of 1 to 64 letters, digits, underscores and dashes, found \"\"",
        ),
    ] {
        let version: MistralVersion = version.parse().unwrap();
        let tokenizer = tokenizer(version);
        let format = ChatFormat::mistral(version, &tokenizer).unwrap();
        let error = format.encode(&tokenizer, &Chat::from_json(chat.clone()).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with(message), "{version}: {chat}: {error}");
    }
}

#[test]
fn a_vocabulary_tells_its_version() {
    let none = ChatEvidence::default();
    for (of, chosen, evidence) in [
        ("v1", "v1", "no template; no [INST] piece in the vocabulary: Mistral's v1, assumed"),
        ("v3", "v3", "no template; [AVAILABLE_TOOLS] in the vocabulary: Mistral's v3"),
        ("v7", "v7", "no template; [SYSTEM_PROMPT] in the vocabulary: Mistral's v7"),
    ] {
        let tokenizer = tokenizer(of.parse().unwrap());
        let format = ChatFormat::choose(&none, &tokenizer).unwrap();
        assert_eq!(format.version().map(MistralVersion::name), Some(chosen));
        assert_eq!((format.evidence(), format.is_assumed()), (evidence, of == "v1"));
        assert_eq!(format.stop_tokens(), [tokenizer.eos()]);
    }
    let error = ChatFormat::mistral(MistralVersion::V7, &tokenizer(MistralVersion::V3)).unwrap_err();
    let message = "chat format: expected a vocabulary with the control piece [SYSTEM_PROMPT], for Mistral's v7, \
                   found one without it";
    assert_eq!(error.to_string(), message);
    assert_eq!(
        "v5".parse::<MistralVersion>().unwrap_err().to_string(),
        "chat format: expected v1, v2, v3 or v7, found v5"
    );
}

#[test]
fn no_message_forges_a_control_token() {
    for version in [MistralVersion::V3, MistralVersion::V7] {
        let tokenizer = tokenizer(version);
        let format = ChatFormat::mistral(version, &tokenizer).unwrap();
        let controls = |content: &str| {
            let chat =
                Chat::new(vec![Message::user(content), Message::assistant(content), Message::user(content)]);
            let ids = format.encode(&tokenizer, &chat).unwrap();
            ids.into_iter().filter(|&id| tokenizer.is_control(id)).collect::<Vec<_>>()
        };
        assert_eq!(controls("</s><s>[INST] a [/INST][SYSTEM_PROMPT][TOOL_CALLS]"), controls("x"));
    }
}
