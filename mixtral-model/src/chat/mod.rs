//! Chats as ids, in the format that the model was taught.
//!
//! The format is a value, [`ChatFormat`], chosen by what the model's files say, [`ChatEvidence`]: one of Mistral's own, which are
//! written id by id, or the model's template, which is run as Transformers runs it (with the cargo feature `chat-templates`). A
//! template that writes what one of Mistral's formats writes is that format.
//!
//! # Who can forge control tokens
//!
//! In Mistral's formats control tokens are ids and never text, so no message can forge one; but version 1 marks turns by the text
//! `[INST]`, which a message may contain. A template writes control tokens as text. Those are recognised where the template writes
//! them; where one is spelled in a message, a tool or a variable, it is replaced by a stand-in before the template runs and stays
//! text (Transformers does so with `sanitize_control_tokens=True`). What remains to a message is what a template builds of it,
//! such as a role between `<|` and `|>`.

mod conversation;
mod evidence;
mod json;
mod message;
mod mistral;
#[cfg(feature = "chat-templates")]
mod recognise;
#[cfg(feature = "chat-templates")]
mod spelled;
#[cfg(feature = "chat-templates")]
mod template;

pub use conversation::{Conversation, Unread};
pub use evidence::{ChatEvidence, Template};
pub use message::{Chat, Message};
pub use mistral::MistralVersion;

#[cfg(feature = "chat-templates")]
use self::spelled::Spelled;
#[cfg(feature = "chat-templates")]
use self::template::Renderer;
use crate::{Error, Result, Tokenizer};

/// How a model's chats are written.
///
/// ```no_run
/// # fn main() -> mixtral_model::Result<()> {
/// use mixtral_model::{Chat, ChatEvidence, ChatFormat, Message, Tokenizer};
///
/// let dir = "Mixtral-8x7B-Instruct-v0.1".as_ref();
/// let tokenizer = Tokenizer::from_dir(dir)?;
/// let format = ChatFormat::choose(&ChatEvidence::from_dir(dir)?, &tokenizer)?;
/// let ids = format.encode(&tokenizer, &Chat::new(vec![Message::user("Hello")]))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ChatFormat {
    kind: Kind,
    evidence: String,
    assumed: bool,
    stop: Vec<u32>,
}

#[derive(Clone, Debug)]
enum Kind {
    Mistral(MistralVersion),
    #[cfg(feature = "chat-templates")]
    Templates(Templates),
}

/// A model's templates that are in use.
#[cfg(feature = "chat-templates")]
#[derive(Clone, Debug)]
struct Templates {
    default: Renderer,
    /// In place of the default where there are tools.
    tool_use: Option<Renderer>,
    spelled: Spelled,
}

impl ChatFormat {
    /// Chooses by the evidence.
    ///
    /// 1. The template `default`, and `tool_use` for chats with tools, if there are templates: as one of Mistral's formats if they
    ///    write the same but for spaces, else as they are. What such a template refuses or leaves out, a system message or tools,
    ///    is then written as Mistral does.
    /// 2. Without one, the format that `tekken.json` is for; where there is none, the newest of Mistral's formats whose control
    ///    pieces the vocabulary holds.
    /// 3. Without these, Mistral's first format, [assumed](Self::is_assumed).
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] for a template that is damaged or does not end, and for one that is none of Mistral's where this crate
    /// is built without the feature `chat-templates`.
    pub fn choose(evidence: &ChatEvidence, tokenizer: &Tokenizer) -> Result<Self> {
        let Some(default) = evidence.template("default").or_else(|| only(&evidence.templates)) else {
            let (versions, piece) = MistralVersion::of_vocabulary(tokenizer);
            let version = versions.first().copied().unwrap_or(MistralVersion::V1);
            if let Some(first) = evidence.templates.first() {
                let names: Vec<_> = evidence.templates.iter().map(|template| &*template.name).collect();
                let reason = format!("expected a template named default, found {}", names.join(", "));
                return Err(Error::ChatTemplate { origin: first.origin.clone(), line: None, reason });
            }
            if let Some(said) = &evidence.version {
                let found = format!("no template; tekken.json is for {said}: Mistral's {said}");
                return Self::of_version(said.parse()?, tokenizer, found);
            }
            let found = match piece {
                Some(piece) => format!("no template; {piece} in the vocabulary: Mistral's {version}"),
                None => {
                    format!("no template; no [INST] piece in the vocabulary: Mistral's {version}, assumed")
                }
            };
            return Ok(Self { assumed: piece.is_none(), ..Self::of_version(version, tokenizer, found)? });
        };
        let tool_use = evidence.template("tool_use").filter(|template| template.name != default.name);
        Self::of_templates(default, tool_use, evidence, tokenizer)
    }

    /// One of Mistral's formats, whatever the model says.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the vocabulary lacks one of its control pieces.
    pub fn mistral(version: MistralVersion, tokenizer: &Tokenizer) -> Result<Self> {
        Self::of_version(version, tokenizer, format!("asked for: Mistral's {version}"))
    }

    fn of_version(version: MistralVersion, tokenizer: &Tokenizer, evidence: String) -> Result<Self> {
        version.check(tokenizer)?;
        Ok(Self { kind: Kind::Mistral(version), evidence, assumed: false, stop: vec![tokenizer.eos()] })
    }

    #[cfg(feature = "chat-templates")]
    fn of_templates(
        default: &Template,
        tool_use: Option<&Template>,
        evidence: &ChatEvidence,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let tokens = template::tokens(evidence, tokenizer);
        let renderer = Renderer::new(default, &tokens)?;
        let tool_use = tool_use.map(|template| Renderer::new(template, &tokens)).transpose()?;
        let write = |chat: &Chat| match &tool_use {
            Some(renderer) if !chat.tools.is_empty() => renderer.render(chat, true),
            _ => renderer.render(chat, true),
        };
        if let Some(version) = recognise::version(write, tokenizer) {
            let found = format!("{}, which writes Mistral's {version}", default.origin);
            return Self::of_version(version, tokenizer, found);
        }
        let mut stop = recognise::end_of_answer(|chat| renderer.render(chat, false), tokenizer);
        let eos = tokens.get("eos_token").and_then(|text| tokenizer.id_of(text)).unwrap_or(tokenizer.eos());
        if !stop.contains(&eos) {
            stop.push(eos);
        }
        let spelled = Spelled::new(tokenizer);
        let kind = Kind::Templates(Templates { default: renderer, tool_use, spelled });
        Ok(Self { kind, evidence: default.origin.clone(), assumed: false, stop })
    }

    #[cfg(not(feature = "chat-templates"))]
    fn of_templates(
        default: &Template,
        _: Option<&Template>,
        _: &ChatEvidence,
        _: &Tokenizer,
    ) -> Result<Self> {
        let reason =
            "expected a build with the feature chat-templates to run it, found one without".to_owned();
        Err(Error::ChatTemplate { origin: default.origin.clone(), line: None, reason })
    }

    /// What the choice rests on, such as `tokenizer_config.json: chat_template, which writes Mistral's v1`.
    pub fn evidence(&self) -> &str {
        &self.evidence
    }

    /// Whether nothing spoke for this format.
    pub fn is_assumed(&self) -> bool {
        self.assumed
    }

    /// Which of Mistral's formats it is, if one.
    pub fn version(&self) -> Option<MistralVersion> {
        match self.kind {
            Kind::Mistral(version) => Some(version),
            #[cfg(feature = "chat-templates")]
            Kind::Templates(_) => None,
        }
    }

    /// The tokens that end an answer in this format; the model's config may name others.
    ///
    /// In Mistral's formats, EOS. With a template, the special token that it writes after an answer, and its `eos_token`.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }

    /// The ids of a chat, to where the model's answer begins, or goes on where the last message is a prefix.
    ///
    /// # Errors
    ///
    /// [`Error::Chat`] for a message that has no place in the format; [`Error::Setting`] for tools, documents or variables that have
    /// none; [`Error::ChatTemplate`] if the template refuses the chat or fails; [`Error::Tokenizer`] for a token that the model does
    /// not have.
    pub fn encode(&self, tokenizer: &Tokenizer, chat: &Chat) -> Result<Vec<u32>> {
        self.encode_with(tokenizer, chat, |_| None)
    }

    /// The text that a template writes of a chat, or that Mistral's format comes to with control pieces written out.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    #[cfg(feature = "chat-templates")]
    pub fn render(&self, tokenizer: &Tokenizer, chat: &Chat) -> Result<String> {
        match &self.kind {
            Kind::Mistral(version) => recognise::text(*version, tokenizer, chat),
            Kind::Templates(templates) => templates.render(chat),
        }
    }

    /// The ids of a chat where those of some answers are known by their message's number. Templates write their texts all the same.
    fn encode_with<'a>(
        &self,
        tokenizer: &Tokenizer,
        chat: &Chat,
        answer: impl Fn(usize) -> Option<&'a [u32]>,
    ) -> Result<Vec<u32>> {
        let ids = match &self.kind {
            Kind::Mistral(version) => version.encode(tokenizer, chat, answer)?,
            #[cfg(feature = "chat-templates")]
            Kind::Templates(templates) => templates.encode(tokenizer, chat)?,
        };
        tokenizer.check(&ids)?;
        Ok(ids)
    }
}

#[cfg(feature = "chat-templates")]
impl Templates {
    fn encode(&self, tokenizer: &Tokenizer, chat: &Chat) -> Result<Vec<u32>> {
        self.spelled.encode(tokenizer, chat, |chat| self.render(chat))
    }

    fn render(&self, chat: &Chat) -> Result<String> {
        let wrong = |index, reason: &str| Err(Error::Chat { index, reason: reason.to_owned() });
        let Some((_, before)) = chat.messages.split_last() else {
            return wrong(0, "expected a message, found the end");
        };
        if let Some(index) = before.iter().position(Message::is_prefix) {
            return wrong(index, "expected prefix in the last message alone, found it earlier");
        }
        let renderer = self.tool_use.as_ref().filter(|_| !chat.tools.is_empty());
        renderer.unwrap_or(&self.default).render(chat, true)
    }
}

/// A single template is the default, whatever its name, unless it is one for chats with tools.
fn only(templates: &[Template]) -> Option<&Template> {
    match templates {
        [template] if template.name != "tool_use" => Some(template),
        _ => None,
    }
}
