//! What goes wrong in a run: typed errors, and sessions that are as they were.

use std::ops::ControlFlow;

use mixtral_model::{
    Compute, Config, Ended, Error, Event, GenerateOptions, Model, Observed, Observer, RopeScaling,
    SessionOptions, Step, Wanted, Workspace, generate,
};
use moe_core::Stage;
use moe_kernels::{Activations, Backend, Dtype};
use ndarray::ArrayView2;

use crate::tiny::{Shape, bits, read};

fn forward(model: &Model, tokens: &[u32]) -> Result<Vec<u32>, Error> {
    let mut session = model.session(SessionOptions::default())?;
    // All, so that the last layer's experts work on every token.
    let step = Step::new(&mut session, tokens).wanted(Wanted::All);
    let logits = model.forward(&mut [step], &mut Workspace::new(), &mut ()).map(|l| bits(&l.to_owned()));
    assert_eq!(session.position(), if logits.is_ok() { tokens.len() } else { 0 });
    logits
}

#[test]
fn tokens_and_context() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    assert!(matches!(forward(&model, &[]), Err(Error::EmptyPrompt)));
    assert!(matches!(forward(&model, &[1, 61]), Err(Error::TokenOutOfRange { token: 61, vocabulary: 61 })));
    assert!(matches!(forward(&model, &[u32::MAX]), Err(Error::TokenOutOfRange { .. })));
    let long = vec![1; 401];
    assert!(matches!(
        forward(&model, &long),
        Err(Error::ContextOverflow { position: 0, tokens: 401, context: 400 })
    ));
    assert!(forward(&model, &long[..400]).is_ok());
    for context in [0, 401, usize::MAX] {
        let session = model.session(SessionOptions::default().with_context(context));
        assert!(matches!(session, Err(Error::Setting { setting: "context", .. })), "{context}");
    }
}

#[test]
fn one_bad_step_takes_none_up() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let mut workspace = Workspace::new();
    let [mut good, mut bad] = [(); 2].map(|()| model.session(SessionOptions::default()).unwrap());
    let steps = |good, bad| {
        [Step::new(good, &[5, 6]).wanted(Wanted::Last), Step::new(bad, &[99]).wanted(Wanted::Last)]
    };
    assert!(model.forward(&mut steps(&mut good, &mut bad), &mut workspace, &mut ()).is_err());
    assert_eq!((good.position(), bad.position()), (0, 0));
    let step = Step::new(&mut good, &[5, 6]).wanted(Wanted::All);
    let found = bits(&model.forward(&mut [step], &mut workspace, &mut ()).unwrap().to_owned());
    assert_eq!(found, read(&model, &[5, 6], &[2], SessionOptions::default(), &mut ()));
}

#[test]
fn a_session_of_a_model_of_another_shape_is_refused() {
    let plain = Shape::plain();
    let model = plain.model(Backend::best());
    for other in [
        Shape { layers: 1, ..plain.clone() },
        Shape { kv_heads: 1, group: 4, ..plain.clone() },
        Shape { half_head: 6, ..plain.clone() },
        Shape { window: Some(3), ..plain.clone() },
    ] {
        let mut session = other.model(Backend::best()).session(SessionOptions::default()).unwrap();
        let step = Step::new(&mut session, &[1, 2]).wanted(Wanted::Last);
        let mut workspace = Workspace::new();
        let refused = model.forward(&mut [step], &mut workspace, &mut ());
        assert!(matches!(refused, Err(Error::Setting { setting: "session", .. })), "{other:?}");
    }
}

#[test]
fn a_config_changed_after_reading_is_checked() {
    let shape = Shape::plain();
    let checkpoint = shape.checkpoint(|_, _| ());
    type Edit = fn(&mut Config);
    let edits: [(&str, Edit); 5] = [
        ("num_key_value_heads", |config| config.kv_heads = 0),
        ("sliding_window", |config| config.sliding_window = Some(0)),
        ("rope_theta", |config| config.rope_theta = f64::NAN),
        ("rope_scaling.factor", |config| config.rope_scaling = RopeScaling::Linear { factor: f64::NAN }),
        ("rms_norm_eps", |config| config.rms_norm_eps = -1.0),
    ];
    for (name, edit) in edits {
        let mut config = shape.config();
        edit(&mut config);
        match Model::load(config, &checkpoint, Backend::best()) {
            Err(Error::Config { field, .. }) if field == name => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A model in which one tensor has one bad value.
fn spoilt(tensor: &'static str, value: f32) -> Model {
    let shape = Shape { dtype: Dtype::F32, tied: false, ..Shape::plain() };
    let spoil = |name: &str, values: &mut [f32]| {
        if name == tensor {
            values[0] = value;
        }
    };
    Model::load(shape.config(), &shape.checkpoint(spoil), Backend::best()).unwrap()
}

#[test]
fn values_that_are_not_finite_are_named_where_they_arise() {
    let every: Vec<u32> = (0..61).collect();
    let message = |tensor, value| forward(&spoilt(tensor, value), &every).unwrap_err();
    for value in [f32::NAN, f32::INFINITY] {
        for (tensor, layer, stage) in [
            ("model.layers.0.self_attn.q_proj.weight", Some(0), "attention"),
            ("model.layers.1.self_attn.o_proj.weight", Some(1), "attention"),
            ("model.layers.1.input_layernorm.weight", Some(1), "attention"),
            ("lm_head.weight", None, "logits"),
            ("model.norm.weight", None, "logits"),
        ] {
            match message(tensor, value) {
                Error::NotFinite { layer: l, stage: s, .. } if (l, s) == (layer, stage) => {}
                other => panic!("{tensor} {value}: {other}"),
            }
        }
        for (tensor, layer, stage) in [
            ("model.layers.1.block_sparse_moe.gate.weight", 1, Stage::RouterLogits),
            ("model.layers.0.post_attention_layernorm.weight", 0, Stage::RouterLogits),
            ("model.layers.0.block_sparse_moe.experts.3.w2.weight", 0, Stage::LayerOutput),
            ("model.layers.1.block_sparse_moe.experts.0.w1.weight", 1, Stage::LayerOutput),
        ] {
            match message(tensor, value) {
                Error::NotFinite { layer: l, stage: s, .. } if (l, s) == (Some(layer), stage.name()) => {}
                other => panic!("{tensor} {value}: {other}"),
            }
        }
    }
    let text = message("model.layers.1.block_sparse_moe.gate.weight", f32::NAN).to_string();
    assert!(text.starts_with("layer 1, router logits: token "), "{text}");
}

/// Stops after some layers.
pub(crate) struct StopAfter(pub(crate) usize);

impl Observer for StopAfter {
    fn layer_done(&mut self, _: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.0 = self.0.saturating_sub(1);
        Ok(if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

#[test]
fn a_stopped_pass_can_be_repeated() {
    // With a window, keys of the stopped chunk lie in the ring already when it is written again.
    for window in [None, Some(5)] {
        let shape = Shape { window, ..Shape::plain() };
        let model = shape.model(Backend::best());
        let ids = shape.ids(40);
        let expected = read(&model, &ids, &[40], SessionOptions::default(), &mut ());
        let mut session = model.session(SessionOptions::default()).unwrap();
        let (mut workspace, mut found) = (Workspace::new(), Vec::new());
        for chunk in ids.chunks(7) {
            for stop in [1, 2] {
                let step = Step::new(&mut session, chunk).wanted(Wanted::All);
                let stopped = model.forward(&mut [step], &mut workspace, &mut StopAfter(stop));
                assert!(matches!(stopped, Err(Error::Stopped)));
            }
            let step = Step::new(&mut session, chunk).wanted(Wanted::All);
            found.extend(bits(&model.forward(&mut [step], &mut workspace, &mut ()).unwrap().to_owned()));
        }
        assert_eq!(found, expected, "{window:?}");
    }
}

#[test]
fn ends_of_a_generation() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let run = |prompt: &[u32], context: usize, options: &GenerateOptions, stop_after: usize| {
        let mut session = model.session(SessionOptions::default().with_context(context))?;
        let mut seen = Vec::new();
        let result =
            generate(&model, &mut session, prompt, options, &mut Workspace::new(), &mut (), |event| {
                if let Event::Token(token) = event {
                    seen.push(token);
                }
                Ok(if seen.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            });
        result.inspect(|generated| assert_eq!(generated.tokens, seen))
    };
    let greedy = GenerateOptions::new(&model, 8);
    let all = run(&[3, 4, 5], 400, &greedy, 99).unwrap();
    assert_eq!((all.tokens.len(), all.ended, all.prompt_tokens), (8, Ended::MaxTokens, 3));
    let chunked = run(&[3, 4, 5], 400, &greedy.clone().with_chunk(2), 99).unwrap();
    assert_eq!(chunked.tokens, all.tokens);
    let first = all.tokens[0];
    let at = all.tokens.iter().position(|t| *t != first).unwrap_or(0);
    let stop = all.tokens[at];
    let stopped = run(&[3, 4, 5], 400, &greedy.clone().with_stop(vec![stop]), 99).unwrap();
    assert_eq!((stopped.tokens, stopped.ended), (all.tokens[..at].to_vec(), Ended::Stop(stop)));
    let short = run(&[3, 4, 5], 5, &greedy, 99).unwrap();
    assert_eq!((short.tokens, short.ended), (all.tokens[..3].to_vec(), Ended::Context));
    let broken = run(&[3, 4, 5], 400, &greedy, 2).unwrap();
    assert_eq!((broken.tokens, broken.ended), (all.tokens[..2].to_vec(), Ended::Stopped));
    let none = run(&[3, 4, 5], 400, &GenerateOptions::new(&model, 0), 99).unwrap();
    assert_eq!((none.tokens.len(), none.ended), (0, Ended::MaxTokens));
    assert!(matches!(run(&[], 400, &greedy, 99), Err(Error::EmptyPrompt)));
    assert!(matches!(run(&[1; 6], 5, &greedy, 99), Err(Error::ContextOverflow { .. })));
    assert!(matches!(run(&[1], 5, &greedy.clone().with_chunk(0), 99), Err(Error::Setting { .. })));
    let mut session = model.session(SessionOptions::default()).unwrap();
    let end =
        generate(&model, &mut session, &[1, 2], &greedy, &mut Workspace::new(), &mut StopAfter(1), |_| {
            Ok::<_, Error>(ControlFlow::Continue(()))
        });
    assert_eq!(end.unwrap().ended, Ended::Stopped);
    assert_eq!(session.position(), 0);
}

#[test]
fn bf16_activations_want_bf16_weights_that_are_not_too_small() {
    let load_as = |dtype, activations, spoil: &dyn Fn(&str, &mut [f32])| {
        let shape = Shape { dtype, ..Shape::plain() };
        let compute = Compute { activations, ..Compute::default() };
        Model::load(shape.config(), &shape.checkpoint(spoil), compute)
    };
    let load = |dtype, spoil: &dyn Fn(&str, &mut [f32])| load_as(dtype, Activations::Bf16, spoil);
    let every: Vec<u32> = (0..61).collect();
    let logits = |model: Model| forward(&model, &every).unwrap();
    let exact = load_as(Dtype::F16, Activations::F32, &|_, _| ()).unwrap();
    let other = load(Dtype::F16, &|_, _| ()).unwrap();
    assert_eq!(logits(other), logits(exact), "weights of other types are multiplied exactly");

    for (tensor, named) in [
        ("model.layers.1.self_attn.k_proj.weight", "layer 1, k_proj: row 0, column 2: expected"),
        (
            "model.layers.0.block_sparse_moe.experts.1.w2.weight",
            "layer 0, experts: expert 1 w2: row 0, column 2",
        ),
        ("lm_head.weight", "lm_head: row 0, column 2: expected"),
    ] {
        let spoil = |name: &str, values: &mut [f32]| {
            if name == tensor {
                values[2] = 1e-20;
            }
        };
        let error = forward(&load(Dtype::Bf16, &spoil).unwrap(), &every).unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
}
