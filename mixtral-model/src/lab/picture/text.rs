//! A text in the colours of its experts.

use super::svg::{Anchor, Fill, Svg, color, is_invisible};
use crate::lab::RoutingMap;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 58.0;
/// Width of a character.
const CHARACTER: f64 = 7.2;
/// Characters of a token that are shown.
const LONGEST: usize = 24;

/// The first tokens of a text, each above a block for every layer in the colour of its best expert there. `texts` are those of the
/// map's tokens, in order. Where layers are few, the blocks have the numbers of all of the token's experts, best first.
pub fn routed_text<S: AsRef<str>>(map: &RoutingMap, texts: impl IntoIterator<Item = S>) -> String {
    let mut svg = Svg::new(WIDTH);
    let title = "The text, with each token's best expert in every layer";
    svg.text([10.0, 20.0], Anchor::Start, "ink bold", title);
    let layers = map.layers.len();
    let numbered = layers <= 8;
    let block = if numbered { 15.0 } else { 5.0 };
    let line_height = 20.0 + layers as f64 * block + 12.0;
    let mut x = WIDTH;
    let mut top = 30.0 - line_height;
    let mut sequence = None;
    for (token, text) in map.tokens.iter().zip(texts) {
        let shown = shown(text.as_ref());
        // Room for the numbers of all experts, which are smaller than the text.
        let numbers = |experts: &Vec<usize>| experts.iter().map(|e| e.to_string().len() + 1).sum::<usize>();
        let most = token.experts.iter().map(numbers).max().unwrap_or(0);
        let least = if numbered { 0.8 * most as f64 } else { 2.0 };
        let width = CHARACTER * (shown.chars().count() as f64).max(least);
        let is_same = sequence.replace(token.place[0]) == Some(token.place[0]);
        if !is_same || x + width > WIDTH - 10.0 {
            (x, top) = (LEFT, top + line_height);
            for layer in (0..layers).step_by(if numbered { 1 } else { 4 }) {
                let y = top + 20.0 + (layer as f64 + 0.5) * block + 4.0;
                svg.text([LEFT - 8.0, y], Anchor::End, "dim", &format!("layer {layer}"));
            }
        }
        let natural = CHARACTER * shown.chars().count() as f64;
        svg.stretched_text([x, top + 14.0], Some(natural), Anchor::Start, "ink mono", &shown);
        for (layer, experts) in token.experts.iter().enumerate() {
            let Some(&best) = experts.first() else { continue };
            let y = top + 20.0 + layer as f64 * block;
            let list: Vec<_> = experts.iter().map(usize::to_string).collect();
            let said = format!("layer {layer}: {}", list.join(", "));
            svg.cell([x, y, width - 1.0, block - 1.0], Fill::Color(&color(best)), &said);
            if numbered {
                svg.text([x + width / 2.0, y + 11.0], Anchor::Middle, "on", &list.join(" "));
            }
        }
        x += width + 1.0;
    }
    legend(&mut svg, top + line_height + 14.0, map);
    svg.finish(title)
}

/// Which colour is which expert.
fn legend(svg: &mut Svg, y: f64, map: &RoutingMap) {
    let experts = map.layers.iter().map(|layer| layer.load.counts().len()).max().unwrap_or(0);
    svg.text([10.0, y], Anchor::Start, "dim", "expert");
    let column = 24.0 + 7.0 * experts.to_string().len() as f64;
    let per_row = ((WIDTH - LEFT) / column) as usize;
    for e in 0..experts {
        let (x, y) = (LEFT + (e % per_row) as f64 * column, y + (e / per_row) as f64 * 18.0);
        svg.cell([x, y - 10.0, 12.0, 12.0], Fill::Color(&color(e)), "");
        svg.text([x + 16.0, y], Anchor::Start, "dim", &e.to_string());
    }
}

/// A token's text in one line: spaces that would be lost are shown.
fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .map(|c| match c {
            ' ' => '\u{b7}',
            '\n' => '\u{21b5}',
            '\t' => '\u{21e5}',
            c if is_invisible(c) => '\u{25a1}',
            c => c,
        })
        .collect();
    if text.chars().count() > LONGEST {
        shown.push('\u{2026}');
    }
    shown
}
