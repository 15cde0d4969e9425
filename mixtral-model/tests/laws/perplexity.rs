//! Perplexity: what is predicted, from what, and how it ends.

use std::ops::ControlFlow;

use mixtral_model::{
    Error, Model, Perplexity, PerplexityOptions, Scored, SessionOptions, Workspace, perplexity,
};
use moe_kernels::Backend;

use crate::tiny::{Shape, read};
use crate::trouble::StopAfter;

fn run(
    model: &Model,
    ids: &[u32],
    options: PerplexityOptions,
    context: usize,
    stop_after: usize,
) -> Result<(Perplexity, Vec<Scored>), Error> {
    let mut session = model.session(SessionOptions::default().with_context(context))?;
    let mut all = Vec::new();
    let event = |scored| {
        all.push(scored);
        if all.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = perplexity(model, &mut session, ids, &options, &mut Workspace::new(), &mut (), event)?;
    assert_eq!(found.predicted, all.len());
    assert_eq!(found.nll_sum.to_bits(), all.iter().map(|s| s.nll).sum::<f64>().to_bits());
    Ok((found, all))
}

#[test]
fn each_token_from_those_before_it_in_its_window() {
    let shape = Shape { window: Some(9), ..Shape::plain() };
    let (model, ids) = (shape.model(Backend::best()), shape.ids(50));
    for (window, stride) in [(50, 50), (16, 16), (16, 5), (7, 1), (2, 2), (2, 1)] {
        let options = PerplexityOptions::new(window).with_stride(stride);
        let (found, all) = run(&model, &ids, options, 400, usize::MAX).unwrap();
        let mut scored = all.iter();
        for part in options.windows(ids.len()) {
            // All of the window in one pass, and the softmax written out.
            let text = &ids[part.tokens.clone()];
            let bits = read(&model, text, &[text.len()], SessionOptions::default(), &mut ());
            for at in part.scored {
                let row = (at - 1 - part.tokens.start) * shape.vocabulary;
                let row: Vec<f64> = bits[row..row + shape.vocabulary]
                    .iter()
                    .map(|&bits| f64::from(f32::from_bits(bits)).exp())
                    .collect();
                let expected = -(row[ids[at] as usize] / row.iter().sum::<f64>()).ln();
                let scored = scored.next().unwrap();
                assert_eq!((scored.at, scored.token), (at, ids[at]));
                assert!((scored.nll - expected).abs() < 1e-12, "{scored:?} {expected}");
            }
        }
        assert!(scored.next().is_none());

        // Neither chunks nor threads nor backends change a bit.
        for chunk in [1, 3, 400] {
            for backend in Backend::available() {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(chunk.min(3)).build().unwrap();
                let model = shape.model(backend);
                let again = pool.install(|| run(&model, &ids, options.with_chunk(chunk), 50, usize::MAX));
                assert_eq!(
                    again.unwrap(),
                    (found.clone(), all.clone()),
                    "{window} {stride} {chunk} {backend}"
                );
            }
        }
    }
}

#[test]
fn a_stop_keeps_what_was_scored() {
    let shape = Shape::plain();
    let (model, ids) = (shape.model(Backend::best()), shape.ids(40));
    let options = PerplexityOptions::new(10).with_chunk(4);
    let (whole, all) = run(&model, &ids, options, 400, usize::MAX).unwrap();
    assert_eq!((whole.predicted, whole.stopped), (36, false));
    let (part, some) = run(&model, &ids, options, 400, 11).unwrap();
    assert_eq!((part.predicted, part.stopped, &some[..]), (11, true, &all[..11]));

    // By an observer: five layers are two passes and a half, of 4, 4 and 1 tokens.
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut workspace = Workspace::new();
    let go_on = |_| ControlFlow::Continue(());
    let stop = &mut StopAfter(5);
    let part = perplexity(&model, &mut session, &ids, &options, &mut workspace, stop, go_on).unwrap();
    assert_eq!((part.predicted, part.stopped), (8, true));
    // What the session held before does not matter.
    let again = perplexity(&model, &mut session, &ids, &options, &mut workspace, &mut (), go_on).unwrap();
    assert_eq!(again, whole);
}

#[test]
fn refusals() {
    let shape = Shape::plain();
    let (model, ids) = (shape.model(Backend::best()), shape.ids(40));
    let error = |ids: &[u32], options| run(&model, ids, options, 30, usize::MAX).unwrap_err().to_string();
    let window = PerplexityOptions::new;
    for (options, message) in [
        (window(1), "window: expected 2 to 30 tokens, found 1"),
        (window(31), "window: expected 2 to 30 tokens, found 31"),
        (window(usize::MAX), "window: expected 2 to 30 tokens, found 18446744073709551615"),
        (window(8).with_stride(0), "stride: expected 1 to 8 tokens, found 0"),
        (window(8).with_stride(9), "stride: expected 1 to 8 tokens, found 9"),
        (window(8).with_chunk(0), "chunk: expected 1 or more, found 0"),
    ] {
        assert_eq!(error(&ids, options), message);
    }
    for short in [&[][..], &[3]] {
        let message = format!("text: expected at least 2 tokens, found {}", short.len());
        assert_eq!(error(short, window(8)), message);
    }
    // A token that is only predicted is looked at too.
    let last = [&ids[..8], &[61]].concat();
    assert_eq!(error(&last, window(9)), "token id 61: expected less than 61");
}
