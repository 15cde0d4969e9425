//! Points and lines over two axes.

use super::svg::{Anchor, Svg, color};

const LEFT: f64 = 70.0;
const WIDTH: f64 = 760.0;
const TOP: f64 = 52.0;
const BASE: f64 = 330.0;

/// A picture of points over two axes, with a list of what they are below.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What the horizontal axis is of.
    pub x: Axis,
    /// What the vertical axis is of.
    pub y: Axis,
    /// Its lines, or groups of points.
    pub series: Vec<Series>,
}

/// An axis of a [`Chart`].
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// What it measures, in which unit.
    pub label: String,
    /// Whether equal ratios are equal lengths.
    pub is_logarithmic: bool,
    /// A number that it reaches to, whatever the points are.
    pub includes: Option<f64>,
    /// Whether it is of whole numbers, so that none lies between them.
    pub is_whole: bool,
    /// Where its numbers stand; at round ones if there are none here.
    pub marks: Vec<f64>,
}

/// Points of a [`Chart`] of one colour.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// What they are.
    pub name: String,
    /// The points, left to right if they are joined.
    pub points: Vec<Point>,
    /// Whether a line goes through them.
    pub is_joined: bool,
    /// Whether they are rings, not dots.
    pub is_hollow: bool,
}

/// A point of a [`Chart`].
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// Where it is on the horizontal axis.
    pub x: f64,
    /// Where it is on the vertical axis.
    pub y: f64,
    /// The ends of an interval around y.
    pub interval: Option<[f64; 2]>,
    /// What it is, for whoever points there.
    pub said: String,
}

impl Chart {
    /// The picture. Points that are not finite, or not above 0 on a logarithmic axis, are left out.
    pub fn svg(&self) -> String {
        let mut svg = Svg::new(WIDTH);
        svg.text([10.0, 20.0], Anchor::Start, "ink bold", &self.title);
        svg.text([10.0, 40.0], Anchor::Start, "dim", &self.y.label);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Scale::new(&self.x, points().map(|point| point.x), [LEFT + 14.0, WIDTH - 24.0]);
        let ends = |point: &Point| point.interval.into_iter().flatten().chain([point.y]).collect::<Vec<_>>();
        let y = Scale::new(&self.y, points().flat_map(ends), [BASE, TOP]);
        for (tick, text) in y.ticks(&self.y.marks) {
            let at = y.at(tick);
            svg.rule([LEFT, at], [WIDTH - 10.0, at], "rule");
            svg.text([LEFT - 8.0, at + 4.0], Anchor::End, "dim", &text);
        }
        svg.rule([LEFT, BASE], [WIDTH - 10.0, BASE], "axis");
        for (tick, text) in x.ticks(&self.x.marks) {
            svg.rule([x.at(tick), BASE], [x.at(tick), BASE + 4.0], "axis");
            svg.text([x.at(tick), BASE + 18.0], Anchor::Middle, "dim", &text);
        }
        svg.text([(LEFT + WIDTH) / 2.0, BASE + 38.0], Anchor::Middle, "dim", &self.x.label);
        let mut legend = BASE + 62.0;
        for (n, series) in self.series.iter().enumerate() {
            let color = color(n);
            let placed = series.points.iter().filter(|point| x.holds(point.x) && y.holds(point.y));
            let places: Vec<_> = placed.clone().map(|point| [x.at(point.x), y.at(point.y)]).collect();
            if series.is_joined {
                svg.line(&places, &color);
            }
            for (point, &[at, height]) in placed.zip(&places) {
                if let Some([low, high]) = point.interval.filter(|ends| ends.iter().all(|&end| y.holds(end)))
                {
                    svg.line(&[[at, y.at(low)], [at, y.at(high)]], &color);
                }
                svg.dot([at, height], &color, series.is_hollow, &format!("{}: {}", series.name, point.said));
            }
            svg.dot([LEFT, legend - 4.0], &color, series.is_hollow, "");
            svg.text([LEFT + 12.0, legend], Anchor::Start, "ink", &shortened(&series.name));
            legend += 18.0;
        }
        svg.finish(&self.title)
    }
}

/// A name as far as there is room for it.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 100;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}\u{2026}", &name[..end]),
        None => name.to_owned(),
    }
}

/// From numbers to pixels.
struct Scale {
    is_logarithmic: bool,
    is_whole: bool,
    low: f64,
    high: f64,
    pixels: [f64; 2],
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, pixels: [f64; 2]) -> Self {
        let &Axis { is_logarithmic, is_whole, includes, .. } = axis;
        let mut scale =
            Self { is_logarithmic, is_whole, low: f64::INFINITY, high: f64::NEG_INFINITY, pixels };
        for value in values.chain(includes) {
            if scale.holds(value) {
                scale.low = scale.low.min(value);
                scale.high = scale.high.max(value);
            }
        }
        // Of no points, or of one: any stretch around it does.
        if !scale.low.is_finite() {
            (scale.low, scale.high) = (1.0, 2.0);
        }
        if scale.low == scale.high {
            let around = match scale.low {
                _ if is_whole => 0.5,
                0.0 => 1.0,
                low => low.abs() / 2.0,
            };
            // What it reaches to in any case is an end.
            let above = if includes == Some(scale.high) { 0.0 } else { around };
            (scale.low, scale.high) = (scale.low - around, scale.high + above);
        }
        scale
    }

    /// Whether it has a place for a number.
    fn holds(&self, value: f64) -> bool {
        value.is_finite() && (!self.is_logarithmic || value > 0.0)
    }

    fn at(&self, value: f64) -> f64 {
        let of = |value: f64| if self.is_logarithmic { libm::log(value) } else { value };
        let share = (of(value) - of(self.low)) / (of(self.high) - of(self.low));
        self.pixels[0] + (self.pixels[1] - self.pixels[0]) * share
    }

    /// The marks or round numbers inside, with their texts.
    fn ticks(&self, marks: &[f64]) -> Vec<(f64, String)> {
        let inside = |tick: &f64| (self.low..=self.high).contains(tick);
        let ticks: Vec<f64> = if !marks.is_empty() {
            marks.iter().copied().filter(inside).collect()
        } else if self.is_logarithmic && self.high / self.low > 6.0 {
            let decades =
                libm::floor(libm::log10(self.low)) as i32..=libm::ceil(libm::log10(self.high)) as i32;
            // A few of each decade, or the decades alone where there are many.
            let steps: &[f64] = if decades.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let of = |decade: i32| steps.iter().map(move |step| step * libm::exp10(f64::from(decade)));
            decades.flat_map(of).filter(inside).collect()
        } else {
            let rough = (self.high - self.low) / 6.0;
            let decade = libm::exp10(libm::floor(libm::log10(rough)));
            let step =
                [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * decade).find(|&step| step >= rough);
            let step = step.unwrap_or(rough).max(if self.is_whole { 1.0 } else { 0.0 });
            let first = (self.low / step).ceil() as i64;
            (first..first + 12).map(|n| n as f64 * step).filter(inside).collect()
        };
        // As many digits as the step has.
        let closest = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let digits = if closest.is_finite() {
            (-libm::floor(libm::log10(closest))).clamp(0.0, 6.0) as usize
        } else {
            0
        };
        ticks.into_iter().map(|tick| (tick, format!("{tick:.digits$}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[[f64; 2]], is_logarithmic: bool) -> Chart {
        let points = points.iter().map(|&[x, y]| Point { x, y, ..Point::default() }).collect();
        let series = vec![Series { name: "a".to_owned(), points, is_joined: true, ..Series::default() }];
        Chart { y: Axis { is_logarithmic, ..Axis::default() }, series, ..Chart::default() }
    }

    #[test]
    fn any_points() {
        for points in [
            &[][..],
            &[[0.0, 0.0]],
            &[[1.0, 5.0]],
            &[[1.0, 5.0], [2.0, f64::NAN], [3.0, f64::INFINITY], [4.0, -1.0]],
            &[[1.0, 1e-30], [2.0, 1e30]],
            &[[1.0, 7.0], [1.0, 7.0]],
        ] {
            for is_logarithmic in [false, true] {
                let svg = chart(points, is_logarithmic).svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?} {svg}");
            }
        }
    }

    #[test]
    fn ticks_are_round() {
        let texts = |low, high, is_logarithmic, is_whole| {
            let scale = Scale { is_logarithmic, is_whole, low, high, pixels: [0.0, 1.0] };
            scale.ticks(&[]).into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts(0.0, 1.0, false, false), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(0.0, 3.0, false, true), ["0", "1", "2", "3"]);
        assert_eq!(texts(30.0, 2600.0, true, false), ["50", "100", "200", "500", "1000", "2000"]);
        assert_eq!(texts(35.0, 49.0, true, false), ["35", "40", "45"]);
    }
}
