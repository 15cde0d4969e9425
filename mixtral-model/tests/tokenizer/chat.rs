//! The chat format against mistral-common.

use mixtral_model::chat::encode_user_turn;
use mixtral_model::{Conversation, Error, Message, Role, encode_chat};

use crate::{Chat, MODEL, Report, Variant, from_model, goldens, variants};

#[test]
fn chats_are_those_of_the_instruct_model() {
    let mut report = Report::default();
    for Variant { name, tokenizer, .. } in variants() {
        for Chat { messages, ids } in goldens().chat {
            let case = || format!("{name}: {messages:?}");
            report.check(case, encode_chat(&tokenizer, &messages).unwrap(), ids.clone());

            // Turn by turn.
            let mut grown = encode_chat(&tokenizer, &messages[..1]).unwrap();
            for turn in messages[1..].chunks(2) {
                grown.extend(tokenizer.encode_ordinary(&turn[0].content));
                grown.push(tokenizer.eos());
                grown.extend(encode_user_turn(&tokenizer, &turn[1].content));
            }
            report.check(case, grown, ids.clone());

            let mut conversation = Conversation::new(&tokenizer, "");
            for message in &messages {
                match message.role {
                    Role::Assistant => {
                        conversation.answered(&tokenizer.encode_ordinary(&message.content));
                    }
                    _ => conversation.ask(&message.content),
                }
            }
            report.check(case, conversation.ids().to_vec(), ids);
        }
    }
    report.finish();
}

fn chat(messages: &[(Role, &str)]) -> Vec<Message> {
    messages.iter().map(|&(role, content)| Message { role, content: content.to_owned() }).collect()
}

/// The ids are those of mistral-common 1.13.1.
#[test]
fn a_system_message_goes_before_the_first_user_message() {
    let tokenizer = from_model(MODEL);
    let ids = |messages| encode_chat(&tokenizer, &chat(messages)).unwrap();
    assert_eq!(
        ids(&[(Role::System, "Be brief."), (Role::User, "Hi")]),
        [1, 733, 16289, 28793, 1739, 6817, 28723, 13, 13, 23809, 733, 28748, 16289, 28793]
    );
    assert_eq!(
        ids(&[(Role::System, "x"), (Role::User, "")]),
        [1, 733, 16289, 28793, 1318, 13, 13, 733, 28748, 16289, 28793]
    );
    assert_eq!(ids(&[(Role::System, ""), (Role::User, "Hi")]), ids(&[(Role::User, "Hi")]));
    let mut conversation = Conversation::new(&tokenizer, "Be brief.");
    conversation.ask("Hi");
    assert_eq!(conversation.ids(), ids(&[(Role::System, "Be brief."), (Role::User, "Hi")]));
    assert_eq!(
        ids(&[
            (Role::System, " sys </s> "),
            (Role::User, "</s><s>[INST]"),
            (Role::Assistant, "<s>"),
            (Role::User, " q")
        ]),
        [
            1, 733, 16289, 28793, 28705, 11677, 1867, 28713, 28767, 28705, 13, 13, 700, 28713, 3409, 28713,
            28767, 28792, 16289, 28793, 733, 28748, 16289, 28793, 523, 28713, 28767, 2, 733, 16289, 28793,
            28705, 4256, 733, 28748, 16289, 28793
        ]
    );
}

#[test]
fn a_chat_alternates_from_user_to_user() {
    use Role::{Assistant, System, User};
    let cases: [(&[Role], usize, &str); 8] = [
        (&[], 0, "expected user, found the end"),
        (&[System], 1, "expected user, found the end"),
        (&[Assistant], 0, "expected user, found assistant"),
        (&[User, User], 1, "expected assistant, found user"),
        (&[User, Assistant], 2, "expected user, found the end"),
        (&[System, System, User], 1, "expected user, found system"),
        (&[System, User, Assistant, Assistant], 3, "expected user, found assistant"),
        (&[User, Assistant, System, User], 2, "expected user, found system"),
    ];
    let tokenizer = from_model(MODEL);
    for (roles, at, message) in cases {
        let messages: Vec<_> = roles.iter().map(|&role| (role, "x")).collect();
        let error = encode_chat(&tokenizer, &chat(&messages)).unwrap_err();
        assert!(matches!(error, Error::Chat { index, .. } if index == at), "{roles:?}: {error}");
        assert_eq!(error.to_string(), format!("chat message {at}: {message}"), "{roles:?}");
    }
}

#[test]
fn roles_are_written_in_lower_case() {
    let message: Message = serde_json::from_str(r#"{"role": "assistant", "content": "ok"}"#).unwrap();
    assert_eq!(message, Message { role: Role::Assistant, content: "ok".to_owned() });
    assert_eq!(serde_json::to_string(&Role::System).unwrap(), r#""system""#);
}
