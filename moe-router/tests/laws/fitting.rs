//! A router that takes another's place in a layer says beforehand whether it can work with the layer's experts.

use moe_core::{Expert, LinearGate, MoeLayer, PerExpert, Result, Router};
use moe_router::{
    AdaptiveK, Capacity, Capped, ExpertScales, ExpertThreshold, Renormalized, ScoredTopK, Sinkhorn, TopK,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::listed::routers;

struct Nothing;

impl Expert for Nothing {
    fn dim(&self) -> usize {
        1
    }

    fn forward(&self, _: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        out.fill(0.0);
        Ok(())
    }
}

fn layer(experts: usize) -> MoeLayer {
    let bank = PerExpert::new((0..experts).map(|_| Nothing).collect()).unwrap();
    let gate = LinearGate::new(Array2::zeros((experts, 1)));
    MoeLayer::new(Box::new(gate), Box::new(TopK::new(1).unwrap()), Box::new(bank)).unwrap()
}

#[test]
fn those_that_fit_and_those_that_do_not() {
    for experts in [1, 2, 5, 16] {
        for listed in routers(experts) {
            let replaced = layer(experts).replace_router(listed.router).map(|_| ());
            assert!(replaced.is_ok(), "{} of {experts}: {replaced:?}", listed.name);
        }
    }
    let top = |k| TopK::new(k).unwrap();
    let refused: [(&str, Box<dyn Router>); 7] = [
        ("top-k", Box::new(top(5))),
        ("capped", Box::new(Capped::new(top(5), Capacity::absolute(2)).unwrap())),
        ("renormalized", Box::new(Renormalized::new(top(5)))),
        ("bias", Box::new(ScoredTopK::afmoe(2, vec![0.0; 3], 1.0).unwrap())),
        ("thresholds", Box::new(ExpertThreshold::new(vec![0.5; 5]).unwrap())),
        ("scales", Box::new(ExpertScales::new(top(2), vec![1.0; 5]).unwrap())),
        ("sinkhorn", Box::new(Sinkhorn::new(5).unwrap())),
    ];
    for (name, router) in refused {
        assert!(layer(4).replace_router(router).is_err(), "{name}");
    }
    // What is asked of some tokens alone is known when they come.
    let adaptive = AdaptiveK::new([1, 5], [0.5]).unwrap();
    let _ = layer(4).replace_router(Box::new(adaptive));
}
