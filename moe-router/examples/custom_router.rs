//! A routing policy of your own, limited by [`Capped`], on a whole layer.
//!
//! `cargo run --release -p moe-router --example custom_router`

use moe_core::{
    Assignments, Expert, LinearGate, Locality, MoeLayer, PerExpert, Result, RouteInput, Routed, Router,
    TokenContext, Workspace, numerics,
};
use moe_router::metrics::TemporalLocality;
use moe_router::{Capacity, Capped, Renormalized, TopK};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// As many experts as a token needs: all whose probability is at least `self.0` times that of the best.
struct MinP(f32);

impl Router for MinP {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mut experts: Vec<usize> = (0..input.experts()).collect();
        for token in input.present() {
            let logits = input.logits.row(token);
            experts.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let ratios = experts.iter().map(|&e| (e, numerics::exp(logits[e] - logits[experts[0]])));
            for (expert, ratio) in ratios.take_while(|&(_, ratio)| ratio >= self.0) {
                out.assign(token, expert, ratio);
            }
        }
        Ok(())
    }

    /// A token's experts depend on it alone. Without this line the router would promise nothing.
    fn locality(&self) -> Locality {
        Locality::Token
    }
}

/// The simplest expert: it scales its input.
struct Scale(f32);

impl Expert for Scale {
    fn dim(&self) -> usize {
        DIM
    }

    fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        out.zip_mut_with(&rows, |out, x| *out = self.0 * x);
        Ok(())
    }
}

const TOKENS: usize = 64;
const DIM: usize = 16;
const EXPERTS: usize = 8;

fn main() -> Result<()> {
    // A layer is a gate, a router and a bank of experts.
    let gate = LinearGate::new(wave(EXPERTS, DIM, 0.37));
    let bank = PerExpert::new((1..=EXPERTS).map(|e| Scale(e as f32)).collect())?;
    let layer = MoeLayer::new(Box::new(gate), Box::new(TopK::new(2)?), Box::new(bank))?;

    // Any router can take the place of the layer's own. Decorators compose: the policy asks, the cap turns away, and what is
    // left of a token's weights is divided by its sum.
    let room = Capacity::factor_of_choices(1.0);
    let routers: [(&str, &dyn Router); 4] = [
        ("top-2", layer.router()),
        ("min-p 0.3", &Renormalized::new(MinP(0.3))),
        ("min-p 0.3, capped", &Renormalized::new(Capped::new(MinP(0.3), room)?)),
        ("  the same by score", &Renormalized::new(Capped::new(MinP(0.3), room)?.by_score())),
    ];

    let hidden = wave(TOKENS, DIM, 1.7);
    let mut y = Array2::zeros((TOKENS, DIM));
    let mut workspace = Workspace::new();
    println!("{TOKENS} tokens, {EXPERTS} experts\n");
    println!("router                 locality  rows  dropped  max/mean  entropy  again  load");
    for (name, router) in routers {
        // A metric is told of every routing: how often a token's first expert is that of the token before.
        let mut again = TemporalLocality::default();
        layer.forward_with(
            router,
            hidden.view(),
            TokenContext::new(),
            &mut workspace,
            &mut |routed: &Routed<'_>| again.add(routed),
            y.view_mut(),
        )?;
        let (plan, locality) = (workspace.plan(), format!("{:?}", router.locality()));
        let s = plan.stats();
        println!(
            "{name:<22} {locality:<8} {:>5} {:>7.1}% {:>9.2} {:>8.3} {:>5.0}%  {:?}",
            plan.rows(),
            100.0 * s.drop_rate,
            s.max_over_mean,
            s.entropy,
            100.0 * again.first.rate(),
            s.load
        );
    }
    Ok(())
}

/// Numbers between -1 and 1 that look irregular enough.
fn wave(rows: usize, columns: usize, step: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| ((r * columns + c + 1) as f32 * step).powi(2).sin())
}
