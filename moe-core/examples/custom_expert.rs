//! An expert of your own and the smallest useful router, in a layer that says what it does.
//!
//! `cargo run --release -p moe-layer --example custom_expert`

use moe_core::{
    Assignments, Expert, LinearGate, Locality, MoeLayer, PerExpert, Result, RouteInput, Routed, Router,
    TokenContext, Workspace, numerics,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, array};

/// A feed-forward network with one hidden layer: `f(x) = W2 · silu(W1 · x)`.
struct Ffn {
    /// `[H, D]`.
    w1: Array2<f32>,
    /// `[D, H]`.
    w2: Array2<f32>,
}

impl Expert for Ffn {
    fn dim(&self) -> usize {
        self.w1.ncols()
    }

    /// All rows that were routed here, `[N, D]`, at once.
    fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        let hidden = rows.dot(&self.w1.t()).mapv(numerics::silu);
        out.assign(&hidden.dot(&self.w2.t()));
        Ok(())
    }
}

/// Each token goes to the expert with its greatest logit, with weight 1.
struct Top1;

impl Router for Top1 {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        for token in input.present() {
            let logits = input.logits.row(token);
            let best =
                (1..input.experts()).fold(0, |best, e| if logits[e] > logits[best] { e } else { best });
            out.assign(token, best, 1.0);
        }
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

fn main() -> Result<()> {
    // Expert 0 serves tokens that lean to the first coordinate, expert 1 the others.
    let gate = LinearGate::new(array![[1.0, 0.0], [0.0, 1.0]]);
    let experts = PerExpert::new(vec![
        Ffn {
            w1: array![[1.0, 1.0], [1.0, -1.0], [0.5, 0.0]],
            w2: array![[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]],
        },
        Ffn { w1: array![[-1.0, 2.0]], w2: array![[0.5], [-0.5]] },
    ])?;
    let layer = MoeLayer::new(Box::new(gate), Box::new(Top1), Box::new(experts))?;

    let hidden = array![[3.0, 1.0], [-1.0, 2.0], [0.5, 0.25], [0.0, 4.0]];
    let mut y = Array2::zeros(hidden.dim());
    let mut observer = |routed: &Routed<'_>| {
        for e in 0..routed.plan.experts() {
            let rows = routed.plan.expert_rows(e);
            println!("expert {e} works on tokens {:?}", &routed.plan.row_tokens()[rows]);
        }
    };
    // The workspace keeps its memory: a second call allocates nothing but what the experts do.
    let mut workspace = Workspace::new();
    layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut observer, y.view_mut())?;

    println!();
    for (x, y) in hidden.rows().into_iter().zip(y.rows()) {
        println!("{x:>6.2} -> {y:>6.3}");
    }
    Ok(())
}
