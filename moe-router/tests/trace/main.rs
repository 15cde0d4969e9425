//! Route traces: what is written is what is read, whatever was damaged is refused, and routing by a trace is routing as recorded.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod replay;

use moe_core::numerics::uniform;
use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::RouterSpec;
use moe_router::trace::{
    Pair, Phase, TokenPlace, TokenRoute, TraceDiff, TraceError, TraceHeader, TraceReader, TraceStats,
    TraceWriter,
};
use ndarray::Array2;
use proptest::prelude::*;

const EXPERTS: [u16; 3] = [6, 8, 6];

/// What sequences read in a pass: identity, first position, tokens.
type Pass = Vec<(u64, usize, usize)>;

/// The lists of a context.
struct Batch {
    offsets: Vec<usize>,
    ids: Vec<u64>,
    positions: Vec<usize>,
    tokens: Vec<u32>,
}

impl Batch {
    fn new(pass: &Pass) -> Self {
        let mut batch = Self { offsets: vec![0], ids: vec![], positions: vec![], tokens: vec![] };
        for &(id, first, count) in pass {
            batch.ids.push(id);
            batch.positions.extend(first..first + count);
            batch.tokens.extend((first..first + count).map(|p| (p * 31 + id as usize) as u32 % 100));
            batch.offsets.push(batch.positions.len());
        }
        batch
    }

    fn context(&self, layer: usize) -> TokenContext<'_> {
        TokenContext::new()
            .with_sequences(&self.offsets)
            .with_sequence_ids(&self.ids)
            .with_positions(&self.positions)
            .with_token_ids(&self.tokens)
            .at_layer(layer)
    }

    fn logits(&self, layer: usize) -> Array2<f32> {
        let context = self.context(layer);
        Array2::from_shape_fn((self.positions.len(), usize::from(EXPERTS[layer])), |(t, e)| {
            let [layer, sequence, position] = context.place(t);
            6.0 * uniform(9, &[layer, sequence, position, e as u64]) - 3.0
        })
    }
}

fn route(router: &dyn Router, batch: &Batch, layer: usize) -> moe_core::Result<RoutingPlan> {
    let (logits, mut out, mut plan) = (batch.logits(layer), Assignments::new(), RoutingPlan::new());
    out.reset(logits.nrows(), logits.ncols())?;
    router.route(&RouteInput::new(logits.view(), batch.context(layer))?, &mut out)?;
    plan.seal(&out)?;
    Ok(plan)
}

fn header() -> TraceHeader {
    let mut header = TraceHeader::new(EXPERTS);
    header.model = Some("a model\nof two lines, with \\ and =, ünïcode".to_owned());
    header.router = Some(String::new());
    header
}

/// The trace of passes, and what every plan has for every token, in the order of the trace.
fn record(router: &dyn Router, passes: &[Pass]) -> moe_core::Result<(Vec<u8>, Vec<TokenRoute>)> {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let mut expected = Vec::new();
    for (step, pass) in passes.iter().enumerate() {
        let batch = Batch::new(pass);
        for layer in 0..EXPERTS.len() {
            let plan = route(router, &batch, layer)?;
            let context = batch.context(layer);
            writer.record(layer, &plan, &context).unwrap();
            for t in 0..plan.tokens() {
                let [_, sequence, position] = context.place(t);
                let mut route = TokenRoute::default();
                (route.step, route.layer) = (step as u32, layer as u16);
                (route.sequence, route.position) = (sequence as u32, position as u32);
                route.token = Some(batch.tokens[t]);
                let alone = pass.iter().any(|&(id, _, count)| id == sequence && count == 1);
                route.phase = if alone { Phase::Decode } else { Phase::Prefill };
                route.kept = plan
                    .choices(t)
                    .map(|choice| Pair {
                        expert: choice.expert as u16,
                        requested: choice.instead_of.unwrap_or(choice.expert) as u16,
                        rank: choice.rank as u16,
                        weight: choice.weight,
                    })
                    .collect();
                let mut refused: Vec<_> =
                    plan.refused().iter().filter(|refusal| refusal.token as usize == t).collect();
                refused.sort_by_key(|refusal| refusal.rank);
                let pair = |refusal: &&moe_core::Refusal| {
                    let (expert, rank) = (refusal.expert as u16, refusal.rank as u16);
                    Pair { expert, requested: expert, rank, weight: 0.0 }
                };
                route.refused = refused.iter().map(pair).collect();
                expected.push(route);
            }
        }
    }
    Ok((writer.finish().unwrap(), expected))
}

fn read(bytes: &[u8]) -> Result<Vec<TokenRoute>, TraceError> {
    let mut reader = TraceReader::new(bytes)?;
    let (mut all, mut route) = (Vec::new(), TokenRoute::default());
    while reader.next(&mut route)? {
        all.push(route.clone());
        all.last_mut().unwrap().offset = 0;
    }
    Ok(all)
}

fn router(spec: &str) -> Box<dyn Router> {
    spec.parse::<RouterSpec>().unwrap().build().unwrap()
}

const SPECS: [&str; 7] = [
    "top-k:k=2",
    "top-p:p=0.7",
    "capped(top-k:k=2):factor=0.6",
    "capped(top-k:k=2):factor=0.6,overflow=reroute",
    "expert-choice:capacity=1.0",
    "relu",
    "dense",
];

fn passes() -> impl Strategy<Value = Vec<Pass>> {
    // Each sequence goes on where it stood.
    prop::collection::vec((0u64..4, 1usize..90), 1..14).prop_map(|parts| {
        let mut positions = [0; 4];
        let mut passes: Vec<Pass> = Vec::new();
        for (id, count) in parts {
            let count = if count > 60 { 1 } else { count };
            let part = (id, positions[id as usize], count);
            positions[id as usize] += count;
            match passes.last_mut() {
                Some(pass) if pass.iter().all(|(before, ..)| *before != id) => pass.push(part),
                _ => passes.push(vec![part]),
            }
        }
        passes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn what_is_written_is_read(passes in passes(), spec in 0..SPECS.len()) {
        let (bytes, expected) = record(&*router(SPECS[spec]), &passes).unwrap();
        let reader = TraceReader::new(&bytes[..]).unwrap();
        prop_assert_eq!(reader.header(), &header());
        prop_assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn bytes_that_are_no_trace(bytes in prop::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
        let text = b"mixtral-route-trace 1 64\nexperts=4\n";
        let bytes = if head { [&text[..], &vec![b' '; 64 - text.len()], &bytes].concat() } else { bytes };
        prop_assert!(read(&bytes).is_err());
    }
}

fn some_trace() -> (Vec<u8>, Vec<TokenRoute>) {
    let passes = vec![vec![(0, 0, 700), (1, 0, 3)], vec![(0, 700, 1), (1, 3, 1)], vec![(0, 701, 40)]];
    record(&*router("capped(top-k:k=2):factor=0.6"), &passes).unwrap()
}

#[test]
fn a_damaged_trace_is_refused_with_the_place() {
    let (bytes, _) = some_trace();
    let head: usize =
        String::from_utf8_lossy(&bytes[..40]).split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(bytes.len() - head > 3 * 1025 * 32, "several stretches");
    for at in (0..bytes.len()).step_by(if cfg!(debug_assertions) { 97 } else { 31 }) {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            match read(&damaged) {
                Err(TraceError::Damaged { offset, .. }) => {
                    // A stretch is refused as a whole.
                    let stretch = |at: usize| at.saturating_sub(head) / (1025 * 32);
                    assert_eq!(stretch(offset as usize), stretch(at), "byte {at}: {offset}");
                }
                Err(other) => panic!("byte {at}: {other}"),
                Ok(_) => panic!("byte {at}"),
            }
        }
        assert!(matches!(read(&bytes[..at]), Err(TraceError::Damaged { .. })), "{at} bytes");
    }
    assert!(read(&[&bytes[..], &[0; 32]].concat()).is_err());
    assert!(read(&[&bytes[..], &bytes[head..]].concat()).is_err());
    // What was refused is not given the second time either.
    let mut damaged = bytes.clone();
    damaged[head + 3000] ^= 1;
    let (mut reader, mut token) = (TraceReader::new(&damaged[..]).unwrap(), TokenRoute::default());
    assert!((0..3).all(|_| reader.next(&mut token).is_err()));
    // A trace that nobody has ended.
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let batch = Batch::new(&vec![(0, 0, 5)]);
    writer.record(0, &route(&*router("top-k:k=1"), &batch, 0).unwrap(), &batch.context(0)).unwrap();
    assert_eq!(writer.records(), 5);
}

#[test]
fn the_layout_is_as_documented() {
    let (bytes, expected) = some_trace();
    let line = String::from_utf8_lossy(&bytes).lines().next().unwrap().to_owned();
    let head: usize = line.strip_prefix("mixtral-route-trace 1 ").unwrap().parse().unwrap();
    let records: Vec<&[u8]> = bytes[head..].chunks(32).filter(|record| record[28] != 3).collect();
    let word = |record: &[u8], at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
    let half = |record: &[u8], at: usize| u16::from_le_bytes(record[at..at + 2].try_into().unwrap());
    let mut rows = records.into_iter();
    for route in expected {
        let kept = route.kept.iter().map(|pair| (pair, 0));
        for (n, (pair, kind)) in kept.chain(route.refused.iter().map(|pair| (pair, 1))).enumerate() {
            let record = rows.next().unwrap();
            assert_eq!([0, 4, 8].map(|at| word(record, at)), [route.step, route.sequence, route.position]);
            assert_eq!(Some(word(record, 12)), route.token);
            assert_eq!(f32::from_bits(word(record, 16)), pair.weight);
            let halves = [route.layer, pair.expert, pair.requested, pair.rank];
            assert_eq!([20, 22, 24, 26].map(|at| half(record, at)), halves);
            assert_eq!(record[28..], [kind, u8::from(route.phase == Phase::Decode), u8::from(n == 0), 0]);
        }
    }
    assert!(rows.next().is_none());
}

#[test]
fn a_planted_flip_is_found() {
    let passes = vec![vec![(0, 0, 50), (7, 0, 9)], vec![(7, 9, 1), (0, 50, 1)]];
    /// Sends one token elsewhere.
    struct Flip(Box<dyn Router>, [u64; 3]);
    impl Router for Flip {
        fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> moe_core::Result<()> {
            for t in 0..input.tokens() {
                let mut logits = input.slice(t..t + 1).logits.to_owned();
                if input.context.place(t) == self.1 {
                    logits.mapv_inplace(|logit| -logit);
                }
                let mut inner = Assignments::new();
                inner.reset(1, input.experts())?;
                self.0.route(&RouteInput::new(logits.view(), TokenContext::new())?, &mut inner)?;
                inner.granted().iter().for_each(|pair| out.assign(t, pair.expert as usize, pair.weight));
            }
            Ok(())
        }
    }
    let plain = |place| record(&Flip(router("top-k:k=2"), place), &passes).unwrap().0;
    let same = plain([9, 9, 9]);
    for place in [[0, 0, 0], [1, 7, 8], [2, 0, 50], [0, 7, 9]] {
        let flipped = plain(place);
        let open = |bytes| TraceReader::new(std::io::Cursor::new(bytes)).unwrap();
        let diff = TraceDiff::read(&mut open(same.clone()), &mut open(flipped)).unwrap();
        let [layer, sequence, position] = place;
        let step = u32::from(position >= if sequence == 0 { 50 } else { 9 });
        let expected =
            TokenPlace { step, layer: layer as u16, sequence: sequence as u32, position: position as u32 };
        assert_eq!(diff.first_difference, Some(expected));
        for (n, layer) in diff.layers.iter().enumerate() {
            let differs = u64::from(n == usize::from(expected.layer));
            assert_eq!((layer.choices.tokens(), layer.choices.set.hits), (61, 61 - differs));
            assert_eq!(layer.first_difference, Some(expected).filter(|_| differs == 1));
            assert!((60.0 / 61.0..=1.0).contains(&layer.choices.overlap()));
        }
    }
    // Traces of other tokens are no pair.
    let mut other = passes.clone();
    other[1].swap(0, 1);
    let (swapped, _) = record(&*router("top-k:k=2"), &other).unwrap();
    let error = TraceDiff::read(
        &mut TraceReader::new(&same[..]).unwrap(),
        &mut TraceReader::new(&swapped[..]).unwrap(),
    );
    assert!(error.unwrap_err().to_string().contains("pass 1, layer 0, position 9 of sequence 7"));
    let (short, _) = record(&*router("top-k:k=2"), &passes[..1]).unwrap();
    let error = TraceDiff::read(
        &mut TraceReader::new(&same[..]).unwrap(),
        &mut TraceReader::new(&short[..]).unwrap(),
    );
    assert!(error.unwrap_err().to_string().ends_with("found only in the first"));
}

#[test]
fn counts() {
    let (bytes, expected) = some_trace();
    let stats = TraceStats::read(&mut TraceReader::new(&bytes[..]).unwrap()).unwrap();
    assert_eq!((stats.steps, stats.tokens, stats.prefill_tokens), (3, 745, 743));
    for (n, layer) in stats.layers.iter().enumerate() {
        let routes: Vec<_> = expected.iter().filter(|route| usize::from(route.layer) == n).collect();
        let pairs =
            |e: usize| routes.iter().flat_map(|r| &r.kept).filter(move |pair| usize::from(pair.expert) == e);
        for (e, &load) in layer.load.counts().iter().enumerate() {
            assert_eq!(load, pairs(e).count() as u64);
            assert_eq!(layer.importance[e], pairs(e).map(|pair| f64::from(pair.weight)).sum::<f64>());
        }
        assert_eq!((layer.tokens, layer.steps), (745, 3));
        assert_eq!(layer.refused, routes.iter().map(|r| r.refused.len() as u64).sum::<u64>());
        assert!(layer.refused > 0 && layer.drop_rate() < 1.0);
        let mut distinct = 0;
        for step in 0..3 {
            let of_step = routes.iter().filter(|route| route.step == step);
            let mut experts: Vec<_> = of_step.flat_map(|r| r.kept.iter().map(|pair| pair.expert)).collect();
            experts.sort_unstable();
            experts.dedup();
            distinct += experts.len() as u64;
        }
        assert_eq!(layer.distinct, distinct);
    }
}

/// Passes without tokens, and those of padding alone, leave no record, and the trace is sound.
#[test]
fn passes_without_tokens() {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let top = router("top-k:k=1");
    for pass in [vec![(0, 0, 0)], vec![(0, 0, 2)], vec![(0, 2, 0)], vec![(0, 2, 0)], vec![(0, 2, 1)]] {
        let batch = Batch::new(&pass);
        for layer in 0..3 {
            writer.record(layer, &route(&*top, &batch, layer).unwrap(), &batch.context(layer)).unwrap();
        }
    }
    let routes = read(&writer.finish().unwrap()).unwrap();
    assert_eq!(routes.iter().map(|route| route.step).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 1, 4, 4, 4]);
}

#[test]
fn a_header_of_many_experts_takes_no_memory() {
    let experts = vec!["65535"; 20_000].join(",");
    let mut bytes = format!("mixtral-route-trace 1 131072\nexperts={experts}\n").into_bytes();
    bytes.resize(131_072, b' ');
    let refused = TraceReader::new(&bytes[..]).unwrap_err().to_string();
    assert!(
        refused.contains("and 1048576 experts in all of them, found 20000 layers with 1310700000 experts"),
        "{refused}"
    );
}

#[test]
fn what_a_trace_cannot_hold_is_refused() {
    let batch = Batch::new(&vec![(0, 0, 2)]);
    let plan = route(&*router("top-k:k=1"), &batch, 0).unwrap();
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    for (layer, context, said) in [
        (3, batch.context(3), "layer: expected less than 3, found 3"),
        (1, batch.context(1), "experts of a layer: expected 8, found 6"),
        (
            0,
            batch.context(0).with_sequence_ids(&[1 << 32]),
            "sequence: expected less than 2^32, found 4294967296",
        ),
    ] {
        assert_eq!(writer.record(layer, &plan, &context).unwrap_err().to_string(), said);
    }
    let mut full = TraceWriter::new(Full(200), &header()).unwrap();
    let recorded = (0..9).try_for_each(|_| full.record(0, &plan, &batch.context(0)));
    assert!(matches!(recorded, Err(TraceError::Io(_))));
}

/// A disk with room for so much.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
