//! A routing policy of your own in a loaded Mixtral, beside the one it was trained with.
//!
//! `cargo run --release -p mixtral-model --example own_router [MODEL_DIR]`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mixtral_model::{Model, PerplexityOptions, SessionOptions, Tokenizer, Workspace, perplexity};
use moe_core::{Assignments, Locality, Result, RouteInput, Router, numerics};
use moe_router::metrics::TemporalLocality;
use moe_router::{Capacity, Capped, TopK};

/// The best expert always, the second only where it is at least `self.0` times as probable.
struct SecondIfClose(f32);

impl Router for SecondIfClose {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        for (token, logits) in input.logits.rows().into_iter().enumerate() {
            let mut best: Vec<usize> = (0..input.experts()).collect();
            best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let ratio = numerics::exp(logits[best[1]] - logits[best[0]]);
            out.assign(token, best[0], if ratio < self.0 { 1.0 } else { 1.0 / (1.0 + ratio) });
            if ratio >= self.0 {
                out.assign(token, best[1], ratio / (1.0 + ratio));
            }
        }
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

const TEXT: &str = "It was a bright cold day in April, and the clocks were striking thirteen. \
    The sailor looked at the whale, and the whale looked at the sailor, and neither of them said a word.";

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo");
    let dir = std::env::args_os().nth(1).map_or(demo, PathBuf::from);
    let ids = Tokenizer::from_dir(&dir)?.encode_prompt(TEXT)?;

    println!(
        "router                         nats a token  experts a token  same first expert as the token before"
    );
    report("as trained", &Model::open(&dir)?, &ids)?;
    for threshold in [0.3, 0.6, 2.0] {
        let model = Model::open(&dir)?.with_routers(|_| Box::new(SecondIfClose(threshold)));
        report(&format!("second if at least {threshold:.1}"), &model, &ids)?;
    }
    // One layer's alone: the others keep what they were trained with.
    let mut model = Model::open(&dir)?;
    model.replace_router(0, Box::new(SecondIfClose(2.0)))?;
    report("one expert in the first layer", &model, &ids)?;
    let capped = Capped::new(TopK::new(2)?, Capacity::factor_of_choices(1.0))?;
    report("top-2, capped", &Model::open(&dir)?.with_routers(|_| Box::new(capped)), &ids)?;
    Ok(())
}

/// Reads the text under the model's routers, and prints how well each next token is predicted and how many experts worked.
fn report(name: &str, model: &Model, ids: &[u32]) -> mixtral_model::Result<()> {
    let mut session = model.session(SessionOptions::default())?;
    let (mut workspace, mut counter) = (Workspace::new(), Counter::default());
    let (options, go_on) = (PerplexityOptions::new(ids.len()), |_| ControlFlow::Continue(()));
    let found = perplexity(model, &mut session, ids, &options, &mut workspace, &mut counter, go_on)?;
    let (nats, experts) = (found.mean(), counter.rows as f32 / counter.tokens as f32);
    let again = counter.locality.first.rate();
    println!("{name:<30} {nats:>12.3}  {experts:>15.2}  {:>38.0}%", 100.0 * again);
    Ok(())
}

/// Counts choices over all layers, and how often neighbours agree.
#[derive(Default)]
struct Counter {
    rows: usize,
    tokens: usize,
    locality: TemporalLocality,
}

impl mixtral_model::Observer for Counter {
    fn routed(&mut self, routed: &moe_core::Routed<'_>) -> mixtral_model::Observed {
        self.rows += routed.plan.rows();
        self.tokens += routed.plan.tokens();
        self.locality.add(routed);
        Ok(())
    }
}
