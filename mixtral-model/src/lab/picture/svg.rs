//! Drawing: what all pictures are made of.

use std::fmt::{Display, Write as _};

/// Colours on a light page and on a dark one, which the viewer's settings choose. Numbers in cells are legible on the whole scale.
const STYLE: &str = "\
.moe{color-scheme:light dark;font-family:system-ui,sans-serif;font-size:12px}\
.moe .paper{fill:#fff}.moe .ink{fill:#1f2328}.moe .dim{fill:#59636e}.moe .rule{stroke:#d1d9e0}.moe .axis{stroke:#59636e}\
.moe .heat{fill:#58a6ff}.moe .on{fill:#0d1117;font-size:10px}.moe .bold{font-weight:600}.moe .mono{font-family:ui-monospace,monospace}\
@media(prefers-color-scheme:dark){\
.moe .paper{fill:#0d1117}.moe .ink{fill:#e6edf3}.moe .dim{fill:#9198a1}.moe .rule{stroke:#3d444d}.moe .axis{stroke:#9198a1}\
.moe .heat{fill:#1f5fbf}}";

/// Colours that are told apart on both pages, also by most who confuse red and green.
const COLORS: [&str; 8] =
    ["#d1600a", "#2f81f7", "#2da44e", "#a371f7", "#c69026", "#db61a2", "#1b9aaa", "#e5534b"];

/// The colour of the n-th of several things.
pub(super) fn color(n: usize) -> String {
    match COLORS.get(n) {
        Some(color) => (*color).to_owned(),
        // The golden angle: neighbours are far apart, and no two are the same.
        None => format!("hsl({:.0},55%,{}%)", n as f64 * 137.508 % 360.0, 50 + 6 * (n % 3)),
    }
}

/// Where a text stands on its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture in the making.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64) -> Self {
        Self { width, height: 0.0, body: String::new() }
    }

    /// Makes sure that the picture reaches down to there.
    pub(super) fn reach(&mut self, y: f64) {
        self.height = self.height.max(y);
    }

    /// A filled rectangle; with something said of it to whoever points there.
    pub(super) fn cell(&mut self, [x, y, width, height]: [f64; 4], fill: Fill<'_>, said: &str) {
        self.reach(y + height);
        let [x, y, width, height] = [x, y, width, height].map(Short);
        let _ = write!(self.body, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"{fill}");
        if said.is_empty() {
            self.body.push_str("/>\n");
        } else {
            let _ = writeln!(self.body, "><title>{}</title></rect>", Escaped(said));
        }
    }

    /// The outline of a rectangle.
    pub(super) fn frame(&mut self, [x, y, width, height]: [f64; 4]) {
        self.reach(y + height);
        let [x, y, width, height] = [x, y, width, height].map(Short);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" class=\"rule\"/>"
        );
    }

    /// A line of text.
    pub(super) fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, class: &str, text: &str) {
        self.stretched_text([x, y], None, anchor, class, text);
    }

    /// A line of text of that width, whatever the viewer's font.
    pub(super) fn stretched_text(
        &mut self,
        [x, y]: [f64; 2],
        width: Option<f64>,
        anchor: Anchor,
        class: &str,
        text: &str,
    ) {
        self.reach(y + 4.0);
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let _ = write!(self.body, "<text x=\"{}\" y=\"{}\"{anchor} class=\"{class}\"", Short(x), Short(y));
        if let Some(width) = width {
            let _ = write!(self.body, " textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\"", Short(width));
        }
        let _ = writeln!(self.body, ">{}</text>", Escaped(text));
    }

    /// A straight line of a class.
    pub(super) fn rule(&mut self, [x, y]: [f64; 2], [to_x, to_y]: [f64; 2], class: &str) {
        let [x, y, to_x, to_y] = [x, y, to_x, to_y].map(Short);
        let _ = writeln!(
            self.body,
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{to_x}\" y2=\"{to_y}\" class=\"{class}\"/>"
        );
    }

    /// A line through points, of a colour.
    pub(super) fn line(&mut self, points: &[[f64; 2]], color: &str) {
        let points: Vec<_> = points.iter().map(|&[x, y]| format!("{},{}", Short(x), Short(y))).collect();
        let points = points.join(" ");
        let _ = writeln!(
            self.body,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>"
        );
    }

    /// A dot of a colour, or a ring, with something said of it.
    pub(super) fn dot(&mut self, [x, y]: [f64; 2], color: &str, is_ring: bool, said: &str) {
        let [x, y] = [x, y].map(Short);
        let fill = if is_ring { "none" } else { color };
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{fill}\" stroke=\"{color}\" stroke-width=\"2\"><title>{}</title></circle>",
            Escaped(said)
        );
    }

    /// The whole picture, which a reader without eyes is told of by its title.
    pub(super) fn finish(self, title: &str) -> String {
        let (width, height, title) = (Short(self.width), Short(self.height + 8.0), Escaped(title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             class=\"moe\" role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n\
             <rect width=\"100%\" height=\"100%\" class=\"paper\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// How a rectangle is filled.
#[derive(Clone, Copy)]
pub(super) enum Fill<'a> {
    /// A share of 0 to 1, on the scale of heat.
    Heat(f64),
    /// A colour.
    Color(&'a str),
}

impl Display for Fill<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Where there is something, it shows.
            Self::Heat(share) if *share > 0.0 => {
                write!(f, " class=\"heat\" fill-opacity=\"{:.3}\"", share.clamp(0.02, 1.0))
            }
            Self::Heat(_) => f.write_str(" class=\"heat\" fill-opacity=\"0\""),
            Self::Color(color) => write!(f, " fill=\"{color}\""),
        }
    }
}

/// A number of pixels, to a tenth.
struct Short(f64);

impl Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = (self.0 * 10.0).round();
        // No number is written as NaN or inf, whatever was measured.
        let tenths = if tenths.is_finite() { tenths } else { 0.0 };
        write!(f, "{}", tenths / 10.0)
    }
}

/// Text between tags or in an attribute. Characters that XML has no place for are shown as boxes.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\u{fffe}' | '\u{ffff}' => f.write_str("\u{25a1}")?,
                c if is_invisible(c) => f.write_str("\u{25a1}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// Whether a character shows nothing, or turns about what comes after it.
pub(super) fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        let mut svg = Svg::new(10.0);
        svg.text([0.0, f64::NAN], Anchor::Start, "ink", "</text><script>\u{1}\"&");
        svg.cell([0.0; 4], Fill::Heat(f64::NAN), "a<b");
        let text = svg.finish("a \"title\"");
        assert!(text.contains("&lt;/text&gt;&lt;script&gt;\u{25a1}&quot;&amp;") && text.contains("a&lt;b"));
        assert!(text.contains("aria-label=\"a &quot;title&quot;\""));
        assert!(!text.contains("NaN"), "{text}");
    }
}
