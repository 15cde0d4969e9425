//! What a comparison of routers shows.

use super::chart::{Axis, Chart, Point, Series};
use crate::lab::{Comparison, Routing};

/// Perplexity against experts a token: each way of routing a point with its 95 % confidence interval, rings where it is not causal. A line
/// joins those called `top-k:k=...`.
pub fn perplexity_by_experts(comparison: &Comparison<'_>) -> String {
    let point = |routing: &Routing<'_>| {
        let (mean, half) = (routing.nll.mean(), routing.nll.half_width());
        let (x, y) = (routing.cost.experts_per_token(), mean.exp());
        let interval = half.map(|half| [(mean - half).exp(), (mean + half).exp()]);
        Point { x, y, interval, said: format!("{x:.2} experts a token, perplexity {y:.2}") }
    };
    let (family, others): (Vec<_>, Vec<_>) =
        comparison.routings.iter().partition(|routing| is_plain_top_k(&routing.name));
    let mut series = Vec::new();
    if !family.is_empty() {
        // The model's own is one of them, where every token has as many experts.
        let own =
            others.first().filter(|own| own.name.is_empty() && own.cost.experts_per_token().fract() == 0.0);
        let mut points: Vec<_> = family.into_iter().chain(own.copied()).map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        series.push(Series {
            name: "top-k, more and fewer experts".to_owned(),
            points,
            is_joined: true,
            is_hollow: false,
        });
    }
    series.extend(others.into_iter().map(|routing| Series {
        name: name(routing),
        points: vec![point(routing)],
        is_joined: false,
        is_hollow: !is_causal(routing),
    }));
    Chart {
        title: "Perplexity against experts a token, with 95 % confidence intervals".to_owned(),
        x: Axis { label: "experts a token in a layer".to_owned(), includes: Some(0.0), ..Axis::default() },
        y: Axis { label: "perplexity".to_owned(), is_logarithmic: true, ..Axis::default() },
        series,
    }
    .svg()
}

/// Agreement over depth: how often each layer gives a token the same best expert as under the model's own routing, by router.
pub fn agreement_by_depth(comparison: &Comparison<'_>) -> String {
    let series = comparison.routings.iter().skip(1).map(|routing| {
        let of_layer = |(layer, agreement): (usize, &moe_router::metrics::ChoiceAgreement)| {
            let share = 100.0 * agreement.first.rate();
            let said = format!("layer {layer}, the same best expert for {share:.1} % of tokens");
            Point { x: layer as f64, y: share, interval: None, said }
        };
        let points = routing.agreement.iter().enumerate().map(of_layer).collect();
        Series { name: name(routing), points, is_joined: true, is_hollow: !is_causal(routing) }
    });
    Chart {
        title: "Agreement over depth: tokens with the same best expert as under the model's own routing"
            .to_owned(),
        x: Axis { label: "layer".to_owned(), is_whole: true, ..Axis::default() },
        y: Axis { label: "% of tokens".to_owned(), includes: Some(100.0), ..Axis::default() },
        series: series.collect(),
    }
    .svg()
}

fn is_plain_top_k(name: &str) -> bool {
    name.strip_prefix("top-k:k=").is_some_and(|k| k.parse::<usize>().is_ok())
}

fn name(routing: &Routing<'_>) -> String {
    let name = if routing.name.is_empty() { "the model's own" } else { &routing.name };
    // First, for a long name may be cut.
    if is_causal(routing) { name.to_owned() } else { format!("not causal: {name}") }
}

fn is_causal(routing: &Routing<'_>) -> bool {
    routing.locality != moe_core::Locality::Batch
}
