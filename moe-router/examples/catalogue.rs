//! Every router of the catalogue on the same logits, as the table of `docs/routing.md`.
//!
//! ```text
//! cargo run -p moe-router --example catalogue
//! ```

use std::fmt::Write as _;

use moe_core::{Assignments, Locality, RouteInput, Router, RoutingPlan, TokenContext, TokenRows, numerics};
use moe_router::RouterSpec;
use ndarray::Array2;

const TOKENS: usize = 256;
const EXPERTS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", table()?);
    Ok(())
}

/// One line a router.
pub(crate) fn table() -> Result<String, Box<dyn std::error::Error>> {
    // A bell around a preference for the lower experts.
    let u = |draw: u64, t: usize, e: usize| numerics::uniform(draw, &[t as u64, e as u64]);
    let preference = |e: usize| (EXPERTS - e) as f32 / 8.0;
    let logits = Array2::from_shape_fn((TOKENS, EXPERTS), |(t, e)| {
        3.0 * (u(1, t, e) + u(2, t, e) - 1.0) + preference(e)
    });
    let ids: Vec<u32> = (0..TOKENS).map(|t| (u(3, t, 0) * u(3, t, 0) * 1000.0) as u32).collect();
    let noise_logits = vec![0.0; TOKENS * EXPERTS];
    let context = TokenContext::new().with_token_ids(&ids);
    let context = context.with_noise_logits(TokenRows::new(&noise_logits, EXPERTS)?);

    let mut table = String::new();
    writeln!(table, "| router | experts a token | max/mean | CV | entropy | idle | dropped | locality |")?;
    writeln!(table, "|---|---|---|---|---|---|---|---|")?;
    let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
    for entry in RouterSpec::catalogue() {
        let text = comparable(entry.example);
        let spec: RouterSpec = text.parse()?;
        if spec.trace().is_some() {
            // It does what its trace says.
            continue;
        }
        let router = spec.build()?;
        assignments.reset(TOKENS, EXPERTS)?;
        router.route(&RouteInput::new(logits.view(), context)?, &mut assignments)?;
        plan.seal(&assignments)?;
        let stats = plan.stats();
        // Sixteen times the same is more than a table has room for.
        let shown = text.replace(&",0.85".repeat(EXPERTS - 1), ",...");
        let locality = match router.locality() {
            Locality::Token => "token",
            Locality::Causal => "causal",
            Locality::Batch => "batch",
        };
        writeln!(
            table,
            "| `{shown}` | {:.2} | {:.2} | {:.3} | {:.3} | {} | {:.1} % | {locality} |",
            plan.rows() as f32 / TOKENS as f32,
            stats.max_over_mean,
            stats.cv,
            stats.entropy,
            stats.idle,
            100.0 * stats.drop_rate,
        )?;
    }
    Ok(table)
}

/// The entry's example for 16 experts, of which a token chooses two.
fn comparable(example: &str) -> String {
    let mut text = example.to_owned();
    for k in ["k=4", "k=6", "k=8", "k=12"] {
        text = text.replace(k, "k=2");
    }
    let text =
        text.replace("groups=8,kept=3", "groups=4,kept=2").replace("groups=8,kept=4", "groups=4,kept=2");
    let text = text.replace("pangu-pro:k=2,groups=8", "pangu-pro:k=2,groups=2");
    let text = text.replace(":experts=6", ":experts=12");
    text.replace(&["0.5"; 8].join(","), &["0.85"; EXPERTS].join(","))
}
