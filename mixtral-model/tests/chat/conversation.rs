//! Conversations, turn by turn, against the whole chat.

use mixtral_model::{Chat, ChatEvidence, ChatFormat, Conversation, Message, MistralVersion};

use crate::vocabulary::tokenizer;
use crate::{Report, fixtures, json};

#[test]
fn turns_come_to_the_whole_chat() {
    let goldens = json(&fixtures().join("tokenizer/goldens.json"));
    let mut report = Report::default();
    for version in MistralVersion::ALL {
        let tokenizer = tokenizer(version);
        let format = ChatFormat::mistral(version, &tokenizer).unwrap();
        for golden in goldens["chat"].as_array().unwrap() {
            let chat = Chat::from_json(golden["messages"].clone()).unwrap();
            // Versions from 2 on write an answer without spaces at its end, a conversation what the model said.
            let spaces = |message: &Message| message.get("content").unwrap().as_str().unwrap().ends_with(' ');
            if version > MistralVersion::V1 && chat.messages.iter().any(spaces) {
                continue;
            }
            let mut conversation = Conversation::new(format.clone(), "");
            for message in &chat.messages {
                let content = message.get("content").unwrap().as_str().unwrap();
                match message.role() {
                    "user" => conversation.ask(&tokenizer, content).unwrap(),
                    _ => conversation.answered(&tokenizer, &tokenizer.encode_ordinary(content).unwrap()),
                }
            }
            let whole = format.encode(&tokenizer, &chat).unwrap();
            report.check(|| format!("{version}: {}", golden["messages"]), conversation.ids(), &*whole);
        }
    }
    report.finish();
}

#[test]
fn the_oldest_turns_are_forgotten() {
    for version in MistralVersion::ALL {
        let tokenizer = tokenizer(version);
        let format = ChatFormat::mistral(version, &tokenizer).unwrap();
        let mut conversation = Conversation::new(format.clone(), "Be brief.");
        let mut shorter = conversation.clone();
        let turns = ["One?", "Two?", "Three?", "Four?"];
        for (conversation, turns) in [(&mut conversation, &turns[..]), (&mut shorter, &turns[2..])] {
            for turn in turns {
                conversation.ask(&tokenizer, turn).unwrap();
                if *turn != "Four?" {
                    conversation
                        .answered(&tokenizer, &tokenizer.encode_ordinary(&turn.replace('?', "!")).unwrap());
                }
            }
        }
        let whole = conversation.ids().to_vec();
        assert!(conversation.forget_oldest(&tokenizer).unwrap());
        assert!(conversation.forget_oldest(&tokenizer).unwrap());
        assert_ne!(conversation.ids(), whole);
        assert_eq!(conversation.ids(), shorter.ids(), "{version}");
        assert_eq!(conversation.chat().messages.len(), 4, "the system message, a turn, and a question");
        assert!(conversation.forget_oldest(&tokenizer).unwrap());
        assert!(
            !conversation.forget_oldest(&tokenizer).unwrap(),
            "the question that is to be answered stays"
        );
        assert_eq!(conversation.chat().messages.len(), 2);
    }
}

#[test]
fn an_answer_is_kept_as_the_model_said_it() {
    let tokenizer = tokenizer(MistralVersion::V1);
    let format = ChatFormat::choose(&ChatEvidence::default(), &tokenizer).unwrap();
    let mut conversation = Conversation::new(format.clone(), "Be brief.");
    conversation.ask(&tokenizer, "Hi").unwrap();
    let mut expected = format
        .encode(&tokenizer, &Chat::new(vec![Message::system("Be brief."), Message::user("Hi")]))
        .unwrap();
    assert_eq!(conversation.ids(), expected);
    // "He" "llo" where encoding would give "Hello".
    let said = [650, 584, 28709];
    conversation.answered(&tokenizer, &said);
    conversation.ask(&tokenizer, "More").unwrap();
    expected.extend(said);
    expected.push(tokenizer.eos());
    expected.extend(tokenizer.encode_ordinary("[INST] More [/INST]").unwrap());
    assert_eq!(conversation.ids(), expected);
    // A question without an answer.
    conversation.ask(&tokenizer, "And more").unwrap();
    expected.push(tokenizer.eos());
    expected.extend(tokenizer.encode_ordinary("[INST] And more [/INST]").unwrap());
    assert_eq!(conversation.ids(), expected);
    assert_eq!(conversation.chat().messages.len(), 6);
}
