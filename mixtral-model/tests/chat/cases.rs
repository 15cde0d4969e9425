//! Chats that others' engines had trouble with, each with the right value and whose software computed it.

use mixtral_model::{Chat, ChatEvidence, ChatFormat, MistralVersion, Template, Tokenizer};

use crate::vocabulary::tokenizer;
use crate::{Report, fixtures, json};

#[test]
fn the_template_of_a_model_is_its_format() {
    let case = fixtures().join("cases/07-chat-template-of-the-model-ignored");
    let dir = case.join("model");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let format = ChatFormat::choose(&ChatEvidence::from_dir(&dir).unwrap(), &tokenizer).unwrap();
    assert_eq!((format.evidence(), format.is_assumed()), ("tokenizer_config.json: chat_template", false));
    let chat = Chat::from_json(json(&case.join("chat.json"))).unwrap();
    // transformers 5.24.0, apply_chat_template(add_generation_prompt=True)
    let expected = [2049, 618, 271, 13, 2011, 532, 1981, 472, 2048, 1977, 13, 2049, 897, 480, 419, 13];
    assert_eq!(format.encode(&tokenizer, &chat).unwrap(), expected);
    assert_eq!(format.stop_tokens(), [2048]);
}

#[test]
fn what_mistral_common_takes_is_taken() {
    let case = fixtures().join("cases/34-chat-messages-that-mistral-common-takes");
    let tokenizer = tokenizer(MistralVersion::V1);
    let format = ChatFormat::choose(&ChatEvidence::from_dir(&case).unwrap(), &tokenizer).unwrap();
    // mistral-common 1.13.1, MistralTokenizer.v1()
    for (file, expected) in [
        ("chat.json", &[1, 733, 16289, 28793, 264, 13, 13, 28726, 733, 28748, 16289, 28793][..]),
        ("parts.json", &[1, 733, 16289, 28793, 12014, 733, 28748, 16289, 28793]),
    ] {
        let chat = Chat::from_json(json(&case.join(file))).unwrap();
        assert_eq!(format.encode(&tokenizer, &chat).unwrap(), expected, "{file}");
    }
}

#[test]
fn tokens_that_are_spelled_stay_text_as_in_transformers() {
    let mut report = Report::default();
    for golden in json(&fixtures().join("chat/spelled.json")).as_array().unwrap() {
        let dir = fixtures().join("cases").join(golden["case"].as_str().unwrap()).join("model");
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let mut evidence = ChatEvidence::from_dir(&dir).unwrap();
        if evidence.templates.is_empty() {
            evidence.templates =
                vec![Template::from_file(&fixtures().join("chat/templates/llama3.jinja")).unwrap()];
        }
        let format = ChatFormat::choose(&evidence, &tokenizer).unwrap();
        let chat = Chat::from_json(golden["chat"].clone()).unwrap();
        let expected: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        report.check(|| golden.to_string(), format.encode(&tokenizer, &chat).unwrap(), expected);
    }
    report.finish();
}
