//! Where tokens went, and the pictures of it.

use std::ops::ControlFlow;

use mixtral_model::lab::{
    CompareOptions, Comparison, ExpertBytes, NewTrace, RoutingMap, compare, picture, record_trace,
    trace_header,
};
use mixtral_model::{LayerRouters, Model, PerplexityOptions, SessionOptions, Workspace};
use moe_kernels::{Backend, Dtype};
use moe_router::trace::{TraceDiff, TraceReader};

use crate::tiny::Shape;

const SPECS: [&str; 4] =
    ["top-k:k=1", "2@random:k=2", "capped(top-k:k=2):factor=0.5", "threshold:at=[0.6,0.6,0.6,0.6,0.6]"];

fn shape() -> Shape {
    Shape { layers: 3, dtype: Dtype::F32, ..Shape::plain() }
}

/// The trace of a text, and the map that was made meanwhile.
fn recorded(model: &Model, ids: &[u32], options: &PerplexityOptions) -> (Vec<u8>, RoutingMap) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut map = RoutingMap::of(model, 70).unwrap();
    let trace = NewTrace { path: &path, header: &trace_header(model) };
    record_trace(model, &mut session, ids, options, trace, &mut Workspace::new(), &mut map).unwrap();
    (std::fs::read(path).unwrap(), map)
}

fn with_router(shape: &Shape, spec: Option<&str>) -> Model {
    let mut model = shape.model(Backend::best());
    if let Some(spec) = spec {
        model.set_routers(&LayerRouters::parse(&model, spec).unwrap()).unwrap();
    }
    model
}

fn same(a: &RoutingMap, b: &RoutingMap) {
    for (a, b) in a.layers.iter().zip(&b.layers) {
        assert_eq!((&a.load, &a.together), (&b.load, &b.together));
    }
    assert_eq!((&a.transitions, &a.tokens), (&b.transitions, &b.tokens));
}

#[test]
fn a_map_is_that_of_its_trace() {
    let shape = shape();
    let ids = shape.ids(130);
    for spec in [None].into_iter().chain(SPECS.map(Some)) {
        let model = with_router(&shape, spec);
        for chunk in [40, 7, 1] {
            let options = PerplexityOptions::new(40).with_chunk(chunk);
            let (trace, map) = recorded(&model, &ids, &options);
            let read = RoutingMap::read(&mut TraceReader::new(&trace[..]).unwrap(), 70).unwrap();
            same(&map, &read);
            // Of four windows of 40 the last token is not read.
            let routed = 3 * 39 + 9;
            assert_eq!(map.layers[1].together.tokens(), routed);
            let pairs: u64 = map.transitions[0].counts().iter().sum();
            assert!(pairs <= routed && (spec.is_some() || pairs == routed), "{spec:?}");
            assert_eq!(map.tokens.len(), 70);
            for (n, token) in map.tokens.iter().enumerate() {
                let (window, position) = (n / 39, n % 39);
                assert_eq!(
                    (token.id, token.place),
                    (Some(ids[40 * window + position]), [window as u64, position as u64])
                );
            }
            if spec.is_none() {
                assert!(
                    map.tokens.iter().all(|token| token.experts.iter().all(|experts| experts.len() == 2))
                );
            }
        }
    }
}

fn compared<'a>(model: &Model, ids: &[u32], bytes: &'a ExpertBytes, ends: usize) -> Comparison<'a> {
    let all: Vec<_> =
        SPECS.iter().map(|spec| ((*spec).to_owned(), LayerRouters::parse(model, spec).unwrap())).collect();
    let options = CompareOptions::new(PerplexityOptions::new(40)).with_map(70);
    let mut calls = 0;
    let go_on = |_, _| {
        calls += 1;
        if calls == ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    compare(model, ids, &options, &all, bytes, &mut (), go_on).unwrap()
}

#[test]
fn agreement_is_that_of_traces() {
    let shape = shape();
    let (model, ids) = (shape.model(Backend::best()), shape.ids(130));
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    let found = compared(&model, &ids, &bytes, usize::MAX);
    let options = PerplexityOptions::new(40);
    let (own, map) = recorded(&model, &ids, &options);
    same(found.map.as_ref().unwrap(), &map);
    for (routing, spec) in found.routings[1..].iter().zip(SPECS) {
        let (other, _) = recorded(&with_router(&shape, Some(spec)), &ids, &options);
        let open = |bytes| TraceReader::new(bytes).unwrap();
        let diff = TraceDiff::read(&mut open(&own[..]), &mut open(&other[..])).unwrap();
        let choices: Vec<_> = diff.layers.iter().map(|layer| layer.choices).collect();
        assert_eq!(routing.agreement, choices, "{spec}");
    }
    let rate = |way: usize, layer: usize| found.routings[way].agreement[layer].first.rate();
    assert!((0..3).all(|layer| rate(0, layer) == 1.0 && rate(1, 0) == 1.0));
    assert_eq!((rate(2, 0), rate(2, 1)), (1.0, 1.0), "what comes before the layer is as it was");
    assert!(rate(2, 2) < 0.6);
    // A window that was not finished is not on the map.
    let stopped = compared(&model, &ids, &bytes, 5 + 2);
    assert_eq!((stopped.windows, stopped.stopped), (1, true));
    assert_eq!(stopped.map.unwrap().layers[0].together.tokens(), 39);
}

#[test]
fn pictures() {
    let shape = shape();
    let (model, ids) = (shape.model(Backend::best()), shape.ids(130));
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    let found = compared(&model, &ids, &bytes, usize::MAX);
    let map = found.map.as_ref().unwrap();
    let texts: Vec<_> = map.tokens.iter().map(|token| format!("<{}>\n", token.id.unwrap())).collect();
    let all = || {
        [
            picture::load(map),
            picture::co_activation(map),
            picture::transitions(map),
            picture::routed_text(map, &texts),
            picture::perplexity_by_experts(&found),
            picture::agreement_by_depth(&found),
        ]
    };
    assert_eq!(all(), all());
    let [load, together, transitions, text, perplexity, agreement] = all();
    for svg in all() {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("aria-label="));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }
    let tokens = map.layers[2].load.counts()[4];
    let percent = 100.0 * tokens as f64 / 126.0;
    assert!(load.contains(&format!("layer 2, expert 4: {tokens} tokens, {percent:.1} %")), "{load}");
    assert_eq!(load.matches("tokens, ").count(), 15);
    let given = 100.0 * map.transitions[1].given(3, 1).rate();
    let said = format!("of the tokens of expert 3 in layer 1, {given:.1} % go to expert 1 in layer 2");
    assert!(given == 0.0 || transitions.contains(&said), "{said}");
    assert_eq!((transitions.matches(">layer ").count(), together.matches(">layer ").count() % 3), (2, 0));
    assert!(text.contains("&lt;") && text.contains("\u{21b5}") && !text.contains("<12>"));
    assert_eq!(text.matches("<title>layer ").count(), 70 * 3);
    assert!(
        perplexity.contains("2@random:k=2: ")
            && perplexity.contains("not causal: capped(top-k:k=2):factor=0.5")
    );
    assert_eq!(agreement.matches("layer 1, the same best expert for ").count(), SPECS.len());
    // Nothing to draw is no trouble.
    let empty = RoutingMap::new([], 5).unwrap();
    let none = [picture::load(&empty), picture::co_activation(&empty), picture::transitions(&empty)];
    assert!(none.iter().all(|svg| !svg.contains("NaN") && !svg.contains("inf\"")));
    assert!(picture::routed_text(&RoutingMap::new([70, 70], 5).unwrap(), [""; 0]).contains("hsl("));
}
