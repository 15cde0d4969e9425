//! A picture of what sparsity buys: the time of a sparse layer and of dense ones, by tokens.

use mixtral_model::lab::picture::{Axis, Chart, Point, Series};

/// The layers whose times are drawn.
const LAYERS: [&str; 3] = ["sparse", "dense, equal active", "dense, equal total"];

/// An SVG of (tokens, seconds) of the sparse layer, the dense one of equal active and that of equal total parameters: seconds
/// over those of the dense layer of equal active parameters.
pub(super) fn svg(layer: &str, times: [Vec<(usize, f64)>; 3]) -> String {
    let [_, of_equal_active, _] = &times;
    let point = |(&(tokens, seconds), &(_, dense)): (&(usize, f64), &(usize, f64))| {
        let ratio = seconds / dense;
        let said = format!("{tokens} tokens: {ratio:.2}");
        Point { x: tokens as f64, y: ratio, said, ..Point::default() }
    };
    let series = times.iter().zip(LAYERS).map(|(line, name)| Series {
        name: name.to_owned(),
        points: line.iter().zip(of_equal_active).map(point).collect(),
        is_joined: true,
        is_hollow: false,
    });
    let marks = of_equal_active.iter().map(|&(tokens, _)| tokens as f64).collect();
    Chart {
        title: format!("Time over that of a dense layer of equal active parameters, {layer}"),
        x: Axis { label: "tokens".to_owned(), is_logarithmic: true, marks, ..Axis::default() },
        y: Axis { label: "times the time".to_owned(), includes: Some(0.0), ..Axis::default() },
        series: series.collect(),
    }
    .svg()
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn a_line_for_each_layer() {
        let times = |factor: f64| vec![(1, 0.5 * factor), (8, factor), (64, 4.0 * factor)];
        let picture = svg("8x8x4x2", [times(1.5), times(1.0), times(4.0)]);
        assert_eq!(picture.matches("<polyline").count(), 3);
        assert_eq!(picture.matches("tokens: ").count(), 9);
        assert!(
            picture.contains("sparse: 8 tokens: 1.50") && picture.contains("equal total: 64 tokens: 4.00")
        );
    }
}
