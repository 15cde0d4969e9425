//! Counts of experts as shades.

use ndarray::ArrayView2;

use super::svg::{Anchor, Fill, Svg};
use crate::lab::RoutingMap;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
/// Experts of a layer up to which the numbers stand in the cells.
const NUMBERED: usize = 16;

/// The load of every expert: layers down, experts across, the share of the layer's tokens that each works on.
pub fn load(map: &RoutingMap) -> String {
    let mut svg = Svg::new(WIDTH);
    let title = "Load: the share of a layer's tokens that each expert works on";
    svg.text([LEFT, 20.0], Anchor::Start, "ink bold", title);
    let most = map.layers.iter().map(|layer| layer.load.counts().len()).max().unwrap_or(0);
    let (width, top, height) = ((WIDTH - LEFT - 10.0) / most.max(1) as f64, 52.0, 22.0);
    let shares = |layer: usize| {
        let layer = &map.layers[layer];
        let tokens = layer.together.tokens().max(1) as f64;
        layer.load.counts().iter().map(move |&count| (count, count as f64 / tokens)).collect::<Vec<_>>()
    };
    let greatest = (0..map.layers.len()).flat_map(shares).map(|(_, share)| share).fold(0.0, f64::max);
    numbers(&mut svg, [LEFT, 44.0], width, most);
    for n in 0..map.layers.len() {
        let y = top + n as f64 * height;
        svg.text([LEFT - 8.0, y + 15.0], Anchor::End, "dim", &format!("layer {n}"));
        for (e, (count, share)) in shares(n).into_iter().enumerate() {
            let (x, percent) = (LEFT + e as f64 * width, 100.0 * share);
            let said = format!("layer {n}, expert {e}: {count} tokens, {percent:.1} %");
            svg.cell([x, y, width - 1.0, height - 1.0], Fill::Heat(share / greatest), &said);
            if most <= NUMBERED {
                let number = format!("{percent:.0} %");
                svg.text([x + width / 2.0, y + 15.0], Anchor::Middle, "ink", &number);
            }
        }
    }
    svg.finish(title)
}

/// Which experts work together: for each layer, of the tokens of the expert in a row the share that the expert in a column works on
/// too.
pub fn co_activation(map: &RoutingMap) -> String {
    let title = "Co-activation: of an expert's tokens (row), the share that another works on too (column)";
    let matrices = map.layers.iter().enumerate().map(|(n, layer)| Matrix {
        name: format!("layer {n}"),
        counts: layer.together.counts(),
        // An expert is always with itself.
        share: Box::new(|a, b| if a == b { None } else { Some(layer.together.given(a, b).rate()) }),
        said: Box::new(move |a, b, share| {
            format!("layer {n}: of the tokens of expert {a}, expert {b} works on {:.1} %", 100.0 * share)
        }),
    });
    small_multiples(title, matrices.collect())
}

/// Where tokens go next: between each layer and the next, of the tokens whose best expert is the one in a row the share whose best
/// expert is then the one in a column.
pub fn transitions(map: &RoutingMap) -> String {
    let title = "Transitions: from a token's best expert (row) to its best expert in the next layer (column)";
    let matrices = map.transitions.iter().enumerate().map(|(n, transitions)| Matrix {
        name: format!("layer {n} to {}", n + 1),
        counts: transitions.counts(),
        share: Box::new(|a, b| Some(transitions.given(a, b).rate())),
        said: Box::new(move |a, b, share| {
            format!(
                "of the tokens of expert {a} in layer {n}, {:.1} % go to expert {b} in layer {}",
                100.0 * share,
                n + 1
            )
        }),
    });
    small_multiples(title, matrices.collect())
}

/// A share for each pair of experts.
struct Matrix<'a> {
    name: String,
    counts: ArrayView2<'a, u64>,
    share: Box<dyn Fn(usize, usize) -> Option<f64> + 'a>,
    said: Box<dyn Fn(usize, usize, f64) -> String>,
}

/// Matrices side by side, on one scale.
fn small_multiples(title: &str, matrices: Vec<Matrix<'_>>) -> String {
    let mut svg = Svg::new(WIDTH);
    svg.text([10.0, 20.0], Anchor::Start, "ink bold", title);
    let most =
        matrices.iter().map(|matrix| matrix.counts.nrows().max(matrix.counts.ncols())).max().unwrap_or(0);
    let cell = (152.0 / most.max(1) as f64).clamp(3.0, 19.0);
    let (side, gap) = (cell * most as f64, 34.0);
    let per_row = (((WIDTH - 10.0) / (side + gap)) as usize).max(1);
    let cells = |matrix: &Matrix<'_>| {
        let (rows, columns) = matrix.counts.dim();
        (0..rows).flat_map(move |a| (0..columns).map(move |b| (a, b)))
    };
    let shares = matrices.iter().flat_map(|matrix| cells(matrix).filter_map(|(a, b)| (matrix.share)(a, b)));
    let greatest = shares.fold(0.0, f64::max);
    for (n, matrix) in matrices.iter().enumerate() {
        let (row, column) = (n / per_row, n % per_row);
        let (left, top) = (34.0 + column as f64 * (side + gap), 62.0 + row as f64 * (side + 52.0));
        svg.text([left, top - 20.0], Anchor::Start, "ink", &matrix.name);
        if most <= NUMBERED {
            numbers(&mut svg, [left, top - 5.0], cell, matrix.counts.ncols());
            for a in 0..matrix.counts.nrows() {
                let y = top + (a as f64 + 0.5) * cell + 4.0;
                svg.text([left - 6.0, y], Anchor::End, "dim", &a.to_string());
            }
        }
        let (rows, columns) = matrix.counts.dim();
        svg.frame([left, top, columns as f64 * cell, rows as f64 * cell]);
        for (a, b) in cells(matrix) {
            // What never happened is left blank: with many experts, that is nearly all.
            let Some(share) = (matrix.share)(a, b).filter(|share| *share > 0.0) else { continue };
            let place = [left + b as f64 * cell, top + a as f64 * cell, cell - 0.5, cell - 0.5];
            svg.cell(place, Fill::Heat(share / greatest), &(matrix.said)(a, b, share));
        }
    }
    svg.finish(title)
}

/// The numbers of experts above their columns.
fn numbers(svg: &mut Svg, [x, y]: [f64; 2], width: f64, experts: usize) {
    let every = ((8.0 + 7.0 * experts.to_string().len() as f64) / width).ceil() as usize;
    for e in (0..experts).step_by(every.max(1)) {
        svg.text([x + (e as f64 + 0.5) * width, y], Anchor::Middle, "dim", &e.to_string());
    }
}
