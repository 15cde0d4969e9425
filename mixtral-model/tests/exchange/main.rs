//! Foreign traces: what each format carries comes back, what others wrote is read, and damaged files are refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod refused;
mod samples;

use std::io::BufReader;

use mixtral_model::lab::exchange::{
    ExchangeError, ExportOptions, ImportOptions, Imported, TraceFormat, export, import,
};
use moe_router::trace::{Pair, Phase, TokenRoute, TraceHeader, TraceReader, TraceWeights, TraceWriter};

const EXPERTS: u16 = 8;
const LAYERS: u16 = 3;
const PROMPT: u32 = 5;

/// A small linear congruential generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % below
    }
}

fn pair(expert: u16, rank: u16, weight: f32) -> Pair {
    Pair { expert, requested: expert, rank, weight }
}

/// A route: pass and layer, sequence and position, phase, kept pairs.
fn route(step: u32, layer: u16, place: (u32, u32), phase: Phase, kept: &[Pair]) -> TokenRoute {
    let mut route = TokenRoute::default();
    (route.step, route.layer, route.sequence, route.position) = (step, layer, place.0, place.1);
    (route.phase, route.kept) = (phase, kept.to_vec());
    route
}

/// Two experts of some token, with weights whose decimals do not end early.
fn two(dice: &mut Dice) -> [Pair; 2] {
    let first = dice.roll(8) as u16;
    let other = (first + 1 + dice.roll(7) as u16) % 8;
    let weight = (1 + dice.roll(1 << 24)) as f32 / 16777217.0;
    [pair(first, 0, weight), pair(other, 1, 1.0 - weight)]
}

/// One sequence: a prompt, and tokens alone.
fn plain() -> Vec<TokenRoute> {
    let (mut dice, mut routes) = (Dice(1), vec![]);
    for step in 0..4 {
        let positions = if step == 0 { 0..PROMPT } else { PROMPT + step - 1..PROMPT + step };
        let phase = if step == 0 { Phase::Prefill } else { Phase::Decode };
        for layer in 0..LAYERS {
            for position in positions.clone() {
                let mut route = route(step, layer, (0, position), phase, &two(&mut dice));
                route.token = Some(100 + position);
                routes.push(route);
            }
        }
    }
    routes
}

/// Two sequences in the same passes, with refused and rerouted pairs.
fn crowded() -> Vec<TokenRoute> {
    let (mut dice, mut routes) = (Dice(2), vec![]);
    for (step, count) in [(0, 3), (1, 1), (2, 1)] {
        for layer in 0..LAYERS {
            for sequence in 0..2 {
                for t in 0..count {
                    let position = if step == 0 { t } else { 2 + step };
                    let phase = if count > 1 { Phase::Prefill } else { Phase::Decode };
                    let [mut one, mut other] = two(&mut dice);
                    let mut route = route(step, layer, (sequence, position), phase, &[]);
                    match dice.roll(3) {
                        0 => {
                            other.weight = 0.0;
                            route.refused.push(other);
                        }
                        1 => {
                            one.weight = 0.0;
                            route.refused.push(one);
                            route.kept.push(other);
                            routes.push(route);
                            continue;
                        }
                        _ => {
                            other.requested = other.expert;
                            other.expert = (0..8).find(|&e| e != one.expert && e != other.expert).unwrap();
                            route.kept.push(other);
                        }
                    }
                    route.kept.insert(0, one);
                    routes.push(route);
                }
            }
        }
    }
    routes
}

fn written(routes: &[TokenRoute], weights: TraceWeights) -> Vec<u8> {
    let mut header = TraceHeader::new([EXPERTS; LAYERS as usize]);
    header.weights = weights;
    let mut writer = TraceWriter::new(vec![], &header).unwrap();
    routes.iter().for_each(|route| writer.write(route).unwrap());
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> (TraceHeader, Vec<TokenRoute>) {
    let (mut reader, mut all) = (TraceReader::new(bytes).unwrap(), vec![]);
    let mut next = TokenRoute::default();
    while reader.next(&mut next).unwrap() {
        let mut route = next.clone();
        route.offset = 0;
        all.push(route);
    }
    (reader.header().clone(), all)
}

fn options() -> ImportOptions {
    let mut options = ImportOptions::default();
    options.experts = vec![EXPERTS; LAYERS as usize];
    (options.choices, options.prompt) = (Some(2), Some(PROMPT));
    options
}

fn exported(format: TraceFormat, trace: &[u8], sequence: Option<u32>) -> Result<Vec<u8>, ExchangeError> {
    let mut file = vec![];
    let mut options = ExportOptions::default();
    options.sequence = sequence;
    export(format, &mut TraceReader::new(trace).unwrap(), &mut file, options)?;
    Ok(file)
}

/// What is given of what the files of a format do not state.
fn fitted(format: TraceFormat, options: &ImportOptions) -> ImportOptions {
    use TraceFormat::*;
    let mut options = options.clone();
    options.choices = options.choices.filter(|_| matches!(format, Sglang | LlamaCpp));
    options.sequence = options.sequence.filter(|_| !matches!(format, BigMoeOnEdge | MoeBalance));
    options
}

fn imported(
    format: TraceFormat,
    file: &[u8],
    options: &ImportOptions,
) -> Result<(Imported, TraceHeader, Vec<TokenRoute>), ExchangeError> {
    let mut trace = vec![];
    let imported = import(format, file, &mut trace, &fitted(format, options))?;
    let (header, routes) = read(&trace);
    assert_eq!(imported.routes, routes.len() as u64);
    Ok((imported, header, routes))
}

fn is_weighed(format: TraceFormat) -> bool {
    use TraceFormat::*;
    matches!(format, PrimeRl | BigMoeOnEdge | Lattice | MoeBalance)
}

/// Without what the format says that it loses, of kept pairs alone.
fn bare(format: TraceFormat, route: &TokenRoute) -> TokenRoute {
    let mut route = route.clone();
    route.token = None;
    for pair in route.kept.iter_mut().filter(|_| !is_weighed(format)) {
        pair.weight = 0.0;
    }
    route
}

#[test]
fn a_plain_trace_comes_back() {
    let routes = plain();
    let trace = written(&routes, TraceWeights::Combination);
    for format in TraceFormat::ALL {
        let file = exported(format, &trace, None).unwrap();
        let (_, header, back) = imported(format, &file, &options()).unwrap();
        let weights = if is_weighed(format) { TraceWeights::Combination } else { TraceWeights::None };
        assert_eq!(header.weights, weights, "{format}");
        let mut expected: Vec<_> = routes.iter().map(|route| bare(format, route)).collect();
        if format == TraceFormat::MoeBalance {
            // Its batch is the sequence.
            expected.iter_mut().for_each(|route| (route.step, route.phase) = (0, Phase::Prefill));
            expected.sort_by_key(|route| (route.layer, route.position));
        }
        assert_eq!(back, expected, "{format}");
        // And a file that was made of an imported trace is the file.
        let again = written(&back, header.weights);
        if format != TraceFormat::MoeBalance {
            assert_eq!(exported(format, &again, None).unwrap(), file, "{format}");
        }
    }
}

#[test]
fn weights_come_back_to_the_bit() {
    let weights = [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), -0.0, 0.1, -1.0 / 3.0, 16777217.0, 1e-40];
    let one = |(t, pairs): (usize, &[f32])| {
        let kept = [pair(3, 0, pairs[0]), pair(1, 1, pairs[1])];
        route(0, 0, (0, t as u32), Phase::Prefill, &kept)
    };
    let routes: Vec<_> = weights.chunks(2).enumerate().map(one).collect();
    let trace = written(&routes, TraceWeights::Combination);
    for format in TraceFormat::ALL.into_iter().filter(|&format| is_weighed(format)) {
        let file = exported(format, &trace, None).unwrap();
        let (_, _, back) = imported(format, &file, &options()).unwrap();
        let bits = |routes: &[TokenRoute]| {
            let pairs = routes.iter().flat_map(|route| &route.kept);
            pairs.map(|pair| pair.weight.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&back), bits(&routes), "{format}");
    }
}

#[test]
fn a_trace_without_weights_comes_back_without() {
    let routes: Vec<_> = plain().iter().map(|route| bare(TraceFormat::Npy, route)).collect();
    let trace = written(&routes, TraceWeights::None);
    for format in TraceFormat::ALL {
        let file = exported(format, &trace, None);
        if format == TraceFormat::PrimeRl {
            let error = file.unwrap_err().to_string();
            assert_eq!(error, "weights: expected combination weights, found weights=none");
            continue;
        }
        let (_, header, back) = imported(format, &file.unwrap(), &options()).unwrap();
        assert_eq!((header.weights, back.len()), (TraceWeights::None, routes.len()), "{format}");
    }
}

/// Layer, sequence and position, and experts with weights, of kept and of refused pairs.
type Gist = ((u16, u32, u32), Vec<(u16, u16, f32)>, Vec<(u16, u16)>);

fn gist(route: &TokenRoute) -> Gist {
    let kept = route.kept.iter().map(|pair| (pair.expert, pair.rank, pair.weight)).collect();
    let refused = route.refused.iter().map(|pair| (pair.expert, pair.rank)).collect();
    ((route.layer, route.sequence, route.position), kept, refused)
}

/// What a format says it carries of a route with refused and rerouted pairs.
fn carried(format: TraceFormat, route: &TokenRoute) -> Gist {
    let (place, mut kept, mut refused) = gist(route);
    match format {
        TraceFormat::BigMoeOnEdge => {}
        TraceFormat::Lattice => {
            refused.clear();
            kept.iter_mut().enumerate().for_each(|(n, pair)| pair.1 = n as u16);
        }
        TraceFormat::PrimeRl | TraceFormat::MoeBalance => {
            kept.extend(refused.drain(..).map(|(expert, rank)| (expert, rank, 0.0)));
        }
        _ => {
            let all = route.kept.iter().chain(&route.refused);
            kept = all.map(|pair| (pair.requested, pair.rank, 0.0)).collect();
            refused.clear();
        }
    }
    kept.sort_by_key(|pair| pair.1);
    (place, kept, refused)
}

#[test]
fn refused_and_rerouted_pairs_are_where_the_format_says() {
    let routes = crowded();
    let trace = written(&routes, TraceWeights::Combination);
    for format in TraceFormat::ALL {
        // Some number sequences anew, some hold one, and some hold none.
        let alone = matches!(format, TraceFormat::Npy | TraceFormat::PrimeRl | TraceFormat::Lattice);
        if alone {
            let error = exported(format, &trace, None).unwrap_err().to_string();
            assert_eq!(error, "sequences: expected one, or one to be named, found several");
        }
        let file = exported(format, &trace, alone.then_some(1)).unwrap();
        let mut options = options();
        options.sequence = alone.then_some(1);
        let (_, _, back) = imported(format, &file, &options).unwrap();
        let mut back: Vec<_> = back.iter().map(gist).collect();
        let of = routes.iter().filter(|route| !alone || route.sequence == 1);
        let mut expected: Vec<_> = of.map(|route| carried(format, route)).collect();
        for gist in back.iter_mut().chain(&mut expected) {
            match format {
                // Tokens are numbered as they come in a pass.
                TraceFormat::Megatron | TraceFormat::LlamaCpp => (gist.0.1, gist.0.2) = (0, 0),
                TraceFormat::Lattice => gist.0.1 = 0,
                _ => {}
            }
        }
        if !matches!(format, TraceFormat::Megatron | TraceFormat::LlamaCpp) {
            back.sort_by(|a, b| a.partial_cmp(b).unwrap());
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
        }
        assert_eq!(back, expected, "{format}");
    }
}

/// Experts of kept pairs by pass, layer, sequence, position and phase.
type Told = Vec<([u32; 4], char, Vec<u16>)>;

fn told(routes: &[TokenRoute]) -> Told {
    let tell = |route: &TokenRoute| {
        let place = [route.step, u32::from(route.layer), route.sequence, route.position];
        let phase = if route.phase == Phase::Prefill { 'p' } else { 'd' };
        (place, phase, route.kept.iter().map(|pair| pair.expert).collect())
    };
    routes.iter().map(tell).collect()
}

fn small(layers: usize) -> ImportOptions {
    let mut options = ImportOptions::default();
    options.experts = vec![4; layers];
    options.choices = Some(2);
    options
}

fn written_as(header: &TraceHeader, routes: &[TokenRoute]) -> Vec<u8> {
    let mut writer = TraceWriter::new(vec![], header).unwrap();
    routes.iter().for_each(|route| writer.write(route).unwrap());
    writer.finish().unwrap()
}
