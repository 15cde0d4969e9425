//! A picture of what sparsity buys: the time of a sparse layer and of dense ones, by tokens.

use std::fmt::Write as _;

/// Middling colours, legible on white and on black: a picture does not know the theme of the page it is in.
const INK: &str = "#7d8590";
const FAINT: &str = "#7d859055";
const LINES: [(&str, &str); 3] =
    [("sparse", "#2f81f7"), ("dense, equal active", "#2da44e"), ("dense, equal total", "#e5534b")];

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 50.0;
const BASE: f64 = 330.0;

/// An SVG of (tokens, seconds) of the sparse layer, the dense one of equal active and that of equal total parameters: seconds
/// over those of the dense layer of equal active parameters.
pub(super) fn svg(layer: &str, times: [Vec<(usize, f64)>; 3]) -> String {
    let ratios = |line: &[(usize, f64)]| -> Vec<(usize, f64)> {
        line.iter().zip(&times[1]).map(|(&(t, taken), &(_, dense))| (t, taken / dense)).collect()
    };
    let lines: Vec<Vec<(usize, f64)>> = times.iter().map(|line| ratios(line)).collect();
    let all = || lines.iter().flatten();
    let most = all().map(|&(_, ratio)| ratio).fold(1.0, f64::max).ceil();
    let (first, last) = all().fold((usize::MAX, 1), |(a, b), &(t, _)| (a.min(t), b.max(t)));
    let octaves = (last as f64 / first as f64).log2().max(1.0);
    let x = |tokens: usize| LEFT + (RIGHT - LEFT) * (tokens as f64 / first as f64).log2() / octaves;
    let y = |ratio: f64| BASE - (BASE - TOP) * ratio / most;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n",
        BASE + 50.0
    );
    let title = format!("Time over that of a dense layer of equal active parameters, {layer}");
    let _ = writeln!(
        svg,
        "<title>{title}</title>\n<text x=\"{LEFT}\" y=\"24\" font-weight=\"600\">{title}</text>"
    );
    for step in 0..=most as usize {
        let at = y(step as f64);
        let stroke = if step == 1 { INK } else { FAINT };
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{stroke}\"/>"
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{step}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for &(tokens, _) in &lines[0] {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tokens}</text>",
            x(tokens),
            BASE + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens</text>",
        (LEFT + RIGHT) / 2.0,
        BASE + 38.0
    );
    for (line, (name, colour)) in lines.iter().zip(LINES) {
        let points: Vec<String> =
            line.iter().map(|&(t, ratio)| format!("{:.1},{:.1}", x(t), y(ratio))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
            points.join(" ")
        );
        for &(t, ratio) in line {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{name}, {t} tokens: {ratio:.2}</title></circle>",
                x(t),
                y(ratio)
            );
        }
        if let Some(&(_, ratio)) = line.last() {
            // The first two end at nearly the same height.
            let lift = if name == "sparse" { -4.0 } else { 10.0 };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                RIGHT + 10.0,
                y(ratio) + lift
            );
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn a_line_for_each_layer() {
        let times = |factor: f64| vec![(1, 0.5 * factor), (8, factor), (64, 4.0 * factor)];
        let picture = svg("8x8x4x2", [times(1.5), times(1.0), times(4.0)]);
        assert_eq!(picture.matches("<polyline").count(), 3);
        assert_eq!(picture.matches("<circle").count(), 9);
        assert!(
            picture.contains("sparse, 8 tokens: 1.50") && picture.contains("equal total, 64 tokens: 4.00")
        );
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        let one = svg("8x8x4x2", [vec![(5, 1.0)], vec![(5, 1.0)], vec![(5, 3.0)]]);
        assert!(!one.contains("NaN") && !one.contains("inf"), "{one}");
    }
}
