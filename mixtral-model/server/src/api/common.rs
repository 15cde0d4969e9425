//! What both kinds of completions are asked with.

use std::sync::Arc;

use axum::http::StatusCode;
use mixtral_model::{LayerRouters, Sampling};
use moe_core::Locality;
use serde_json::{Value, json};

use super::fault::Fault;
use super::fields::{Fields, wrong};
use super::{Api, no_such_model};
use crate::engine::Request;

/// Texts that may end a completion, and the most bytes of each.
const STOPS: (usize, usize) = (16, 1000);

/// Choices of a prompt.
const CHOICES: usize = 64;

/// Most tokens beside one whose probabilities are told.
pub(super) const TOP: usize = 20;

/// What both kinds of completions are asked with.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) choices: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<usize>,
    pub(super) seed: u64,
    pub(super) routing: bool,
    stops: Vec<String>,
    sampling: Sampling,
    /// The text of the routers, and the seed of what they draw.
    router: Option<String>,
    router_seed: u64,
}

impl Common {
    /// Takes the fields that both kinds have.
    pub(super) fn take(api: &Api, fields: &mut Fields) -> Result<Self, Fault> {
        let core = api.core();
        let options = &core.options;
        if fields.text("model")?.is_some_and(|name| name != options.model_name) {
            return Err(no_such_model());
        }
        // Whom a request is for changes nothing in it.
        fields.text("user")?;
        for (name, done) in [
            ("presence_penalty", json!(0)),
            ("frequency_penalty", json!(0)),
            ("response_format", json!({"type": "text"})),
            ("store", json!(false)),
        ] {
            fields.only(name, &done)?;
        }
        let choices = fields.whole("n", 1..=CHOICES)?.unwrap_or(1);
        fields.only("best_of", &json!(choices))?;
        let stream = fields.flag("stream")?;
        let mut include_usage = false;
        if let Some(mut stream_options) = fields.object("stream_options")? {
            if !stream {
                return Err(Fault::field("stream_options", "expected stream to be true beside it"));
            }
            include_usage = stream_options.flag("include_usage")?;
            stream_options.only("include_obfuscation", &json!(false))?;
            stream_options.finish()?;
        }
        let given = fields.seed()?;
        let random = || getrandom::u32().map(u64::from);
        let seed = given.map_or_else(random, Ok);
        let seed = seed.map_err(|error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let router = fields.text("router")?;
        let mut this = Self {
            choices,
            stream,
            include_usage,
            max_tokens: fields.whole("max_tokens", 0..=options.max_tokens)?,
            seed,
            routing: fields.flag("return_routing")?,
            stops: stops(fields)?,
            sampling: sampling(fields, options.sampling.clone(), core.model.config().vocab_size)?,
            router_seed: if router.is_some() || options.routers_draw { seed } else { 0 },
            router,
        };
        this.sampling.seed = seed;
        Ok(this)
    }

    /// The requests for the choices of a prompt, by default with so many tokens, or as many as there is room for.
    pub(super) fn requests(
        &self,
        api: &Api,
        prompt: &[u32],
        default: usize,
        stop_tokens: &[u32],
        logprobs: Option<usize>,
        prompt_logprobs: bool,
    ) -> Result<Vec<Request>, Fault> {
        let core = api.core();
        let context = core.options.session.context.unwrap_or(core.model.config().max_positions);
        if prompt.is_empty() {
            return Err(Fault::field("prompt", "expected at least one token"));
        }
        // The last token that is drawn is not read.
        let room = (context + 1).saturating_sub(prompt.len());
        let max_tokens = self.max_tokens.unwrap_or(default.min(room));
        if prompt.len() > context || max_tokens > room {
            let found = format!("{} of the prompt and {max_tokens} to draw", prompt.len());
            let message = format!("expected at most {context} positions of a text, found {found}");
            return Err(Fault::bad(message).code("context_length_exceeded"));
        }
        (0..self.choices)
            .map(|n| {
                let seed = self.seed.wrapping_add(n as u64);
                Ok(Request {
                    prompt: prompt.to_vec(),
                    max_tokens,
                    sampling: self.sampling.clone().with_seed(seed),
                    stop_tokens: stop_tokens.to_vec(),
                    stop_texts: self.stops.clone(),
                    logprobs,
                    prompt_logprobs,
                    routers: self.routers(api, prompt.len(), prompt_logprobs)?,
                    routing: self.routing,
                    router_seed: self.router_seed,
                })
            })
            .collect()
    }

    /// The routers asked for, of the request alone: what they remember is of no other.
    fn routers(&self, api: &Api, prompt: usize, scored: bool) -> Result<Option<Arc<LayerRouters>>, Fault> {
        let core = api.core();
        let refused = |error: mixtral_model::Error| Fault::field("router", error.to_string());
        let routers = match &self.router {
            None => None,
            Some(text) if LayerRouters::reads_a_file(text).map_err(refused)? => {
                return Err(Fault::field("router", "routers that read a file are not taken from requests"));
            }
            Some(text) => Some(LayerRouters::parse(&core.model, text).map_err(refused)?),
        };
        let locality = routers.as_ref().map_or(core.model.locality(), |own| own.locality(&core.model));
        // Logits of all its tokens take the most memory of a pass.
        let most = if scored { core.options.prompt_tokens } else { core.options.whole_prompt };
        if locality != Locality::Token && prompt > most {
            let message = format!(
                "a prompt whose routers look at other tokens than the one they route is read in one pass: expected at most {most} \
                 tokens, found {prompt}"
            );
            return Err(Fault::field("prompt", message));
        }
        Ok(routers.map(Arc::new))
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Fault> {
    let (count, bytes) = STOPS;
    let expected = format!("a text, or up to {count} of them, of 1 to {bytes} bytes each");
    let value = fields.take("stop");
    let texts = match &value {
        None => Some(Vec::new()),
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(texts)) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    let fits = |texts: &Vec<String>| {
        texts.len() <= count && texts.iter().all(|text| (1..=bytes).contains(&text.len()))
    };
    texts.filter(fits).ok_or_else(|| wrong("stop", &expected, &value.unwrap_or_default()))
}

/// How tokens are drawn: as the server is told, but for what the request says.
fn sampling(fields: &mut Fields, mut sampling: Sampling, vocabulary: usize) -> Result<Sampling, Fault> {
    let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = &mut sampling;
    for (name, place) in [
        ("temperature", temperature),
        ("top_p", top_p),
        ("min_p", min_p),
        ("repetition_penalty", repetition_penalty),
    ] {
        if let Some(number) = fields.number(name)? {
            *place = number;
        }
    }
    if let Some(k) = fields.whole("top_k", 0..=usize::MAX)? {
        sampling.top_k = Some(k).filter(|&k| k > 0);
    }
    match fields.take("logit_bias") {
        None => {}
        Some(Value::Object(biases)) => {
            let read = |(id, bias): (&String, &Value)| {
                let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocabulary)?;
                let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
                Some((id, bias as f32))
            };
            let biases = biases.iter().map(read).collect::<Option<Vec<_>>>();
            let expected = format!("ids below {vocabulary} with numbers from -100 to 100");
            let biases = biases.ok_or_else(|| Fault::field("logit_bias", format!("expected {expected}")))?;
            sampling = sampling.with_logit_bias(biases);
        }
        Some(other) => return Err(wrong("logit_bias", "an object", &other)),
    }
    sampling.check().map_err(|error| {
        let message = error.to_string();
        let name = match &error {
            mixtral_model::Error::Setting { setting, .. } => setting.replace([' ', '-'], "_"),
            _ => String::new(),
        };
        Fault::bad(message).of(&name).code("invalid_value")
    })?;
    Ok(sampling)
}
