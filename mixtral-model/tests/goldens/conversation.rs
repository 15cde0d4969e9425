//! A session of the demo that reads what a conversation says.

use std::ops::ControlFlow;

use mixtral_model::{
    ChatEvidence, ChatFormat, Compute, Conversation, Error, GenerateOptions, MistralVersion, SessionOptions,
    Template, Unread, Workspace, generate,
};

use crate::demo::{demo, tokenizer};

#[test]
fn a_session_reads_what_it_has_not_read() {
    let (tokenizer, model) = (tokenizer(), demo(Compute::default()));
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
            let (workspace, event) = (&mut Workspace::new(), |_| Ok::<_, Error>(ControlFlow::Continue(())));
            let generated =
                generate(&model, &mut session, &ids, &options, workspace, &mut (), event).unwrap();
            // What the template writes of an answer is its text without spaces around.
            conversation.answered(&tokenizer, &generated.tokens);
            assert!(conversation.ids().starts_with(session.tokens()));
        }
    }
}
