//! Conversations, turn by turn, against the whole chat.

use std::ops::ControlFlow;
use std::path::Path;

use mixtral_model::{
    Access, Chat, ChatEvidence, ChatFormat, Checkpoint, Compute, Config, Conversation, GenerateOptions,
    Message, MistralVersion, Model, SessionOptions, Template, Tokenizer, Unread, Workspace, generate,
};

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
                    _ => conversation.answered(&tokenizer, &tokenizer.encode_ordinary(content)),
                }
            }
            let whole = format.encode(&tokenizer, &chat).unwrap();
            report.check(|| format!("{version}: {}", golden["messages"]), conversation.ids(), &*whole);
        }
    }
    report.finish();
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
    expected.extend(tokenizer.encode_ordinary("[INST] More [/INST]"));
    assert_eq!(conversation.ids(), expected);
    // A question without an answer.
    conversation.ask(&tokenizer, "And more").unwrap();
    expected.push(tokenizer.eos());
    expected.extend(tokenizer.encode_ordinary("[INST] And more [/INST]"));
    assert_eq!(conversation.ids(), expected);
    assert_eq!(conversation.chat().messages.len(), 6);
}

/// A small model, a session that reads what a conversation says, and what comes of it.
#[test]
fn a_session_reads_what_it_has_not_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir, Access::Map).unwrap();
    let model = Model::load(Config::from_dir(&dir).unwrap(), &checkpoint, Compute::default()).unwrap();
    let template = |text: &str| {
        let template = Template { name: "default".into(), text: text.into(), origin: "test".into() };
        ChatFormat::choose(&ChatEvidence::new(vec![template]), &tokenizer).unwrap()
    };
    let plain =
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant: ' }}";
    // Says at every turn how many there are, so that nothing read before is of use.
    let counting = "{{ messages | length }}".to_owned() + plain;
    for (format, clears) in [
        (ChatFormat::mistral(MistralVersion::V1, &tokenizer).unwrap(), false),
        (template(plain), false),
        (template(&counting), true),
    ] {
        let mut session = model.session(SessionOptions::default()).unwrap();
        let mut conversation = Conversation::new(format, "Be kind.");
        for turn in 0..3 {
            conversation.ask(&tokenizer, "Who are you?").unwrap();
            let Unread { clear, ids } = conversation.unread(&session);
            assert_eq!(clear, clears && turn > 0, "turn {turn}");
            if clear {
                session.clear();
            }
            assert_eq!(clears || turn == 0, ids == conversation.ids());
            let ids = ids.to_vec();
            let options = GenerateOptions::new(&model, 4);
            let (workspace, event) = (&mut Workspace::new(), |_| ControlFlow::Continue(()));
            let generated =
                generate(&model, &mut session, &ids, &options, workspace, &mut (), event).unwrap();
            // What the template writes of an answer is its text without spaces around.
            conversation.answered(&tokenizer, &generated.tokens);
            assert!(conversation.ids().starts_with(session.tokens()));
        }
    }
}
