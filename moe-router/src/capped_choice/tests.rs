//! Against a slow solver, the definition of optimality, and the best of all choices.

use moe_core::{RoutingPlan, TokenContext};
use ndarray::Array2;

use super::*;

#[test]
fn the_shift_gives_the_sum() {
    let cases: [&[f32]; 5] =
        [&[0.0; 4], &[-300.0, 5.0, 700.0, 1.0], &[9.0, 8.0, 7.0, -9.0], &[-1e3, -1e3, 0.0, 0.0], &[3.0; 9]];
    for x in cases {
        for places in 1..=x.len() {
            let shift = shift_to(&mut x.to_vec(), places);
            let sum: f64 = x.iter().map(|&x| f64::from(x + shift).min(0.0).exp()).sum();
            assert!((sum - places as f64).abs() < 1e-3, "{x:?}, {places}: {sum}");
        }
    }
}

/// The solution is `ln A = S/λ + u[e]` for what no inequality holds back: alike for all such tokens of an expert.
#[test]
fn the_solution_is_optimal() {
    let (tokens, experts, places, cap) = (8, 4, 3, 2);
    let router = CappedExpertChoice::new(Capacity::absolute(places), cap).unwrap().iterations(5000);
    let (mut compared, mut held) = (0, 0);
    for seed in 0..60u64 {
        let start: Vec<f32> = (0..tokens * experts)
            .map(|i| {
                let liked = if i / experts < 3 { 2.0 } else { 0.0 };
                liked + 6.0 * numerics::uniform(seed, &[i as u64])
            })
            .collect();
        let (mut a, mut scratch) = (start.clone(), vec![0.0; tokens * (experts + 2)]);
        router.project(&mut a, experts, places, &mut scratch);
        let sum = |t: usize| a[t * experts..][..experts].iter().map(|a| a.exp()).sum::<f32>();
        for e in 0..experts {
            let total: f32 = (0..tokens).map(|t| a[t * experts + e].exp()).sum();
            assert!((total - places as f32).abs() < 1e-2, "seed {seed}: expert {e} takes {total}");
            let free = (0..tokens).filter(|&t| sum(t) < cap as f32 - 0.02 && a[t * experts + e] < -0.02);
            let shifts: Vec<f32> = free.map(|t| a[t * experts + e] - start[t * experts + e]).collect();
            compared += shifts.len().saturating_sub(1);
            let alike = shifts.windows(2).all(|w| (w[0] - w[1]).abs() < 5e-3);
            assert!(alike, "seed {seed}: expert {e}: {shifts:?}");
        }
        assert!((0..tokens).all(|t| sum(t) <= cap as f32 + 1e-2));
        held += (0..tokens).filter(|&t| sum(t) > cap as f32 - 0.02).count();
    }
    assert!(compared > 30 && held > 30, "{compared} {held}");
}

/// The same iterations in f64, each shift found by halving: what A's logarithms are after each, and by how much the correction
/// moved that moved most.
fn slowly(start: &[f32], experts: usize, places: usize, cap: usize, most: usize) -> Vec<(Vec<f64>, f64)> {
    let tokens = start.len() / experts;
    let mut a: Vec<f64> = start.iter().map(|&a| a.into()).collect();
    let (mut over_one, mut over_cap) = (vec![0.0; a.len()], vec![0.0; tokens]);
    let mut done = vec![];
    for _ in 0..most {
        let mut moved = 0.0f64;
        for e in 0..experts {
            let open: Vec<usize> =
                (0..tokens).map(|t| t * experts + e).filter(|&i| start[i] > f32::NEG_INFINITY).collect();
            let x: Vec<f64> = open.iter().map(|&i| a[i] + over_one[i]).collect();
            let least = x.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Where all are to be 1, the least shift by which they are.
            let (mut low, mut high) = (-greatest - 30.0, -least);
            while places < open.len() && high - low > 1e-13 * high.abs().max(1.0) {
                let middle = (low + high) / 2.0;
                let sum: f64 = x.iter().map(|x| (x + middle).min(0.0).exp()).sum();
                if sum < places as f64 { low = middle } else { high = middle }
            }
            for (&i, x) in open.iter().zip(x) {
                let over = (x + high).max(0.0);
                moved = moved.max((over - over_one[i]).abs());
                (a[i], over_one[i]) = ((x + high).min(0.0), over);
            }
        }
        for (t, over) in over_cap.iter_mut().enumerate() {
            let row = &mut a[t * experts..][..experts];
            let excess = (*over + row.iter().map(|a| a.exp()).sum::<f64>().ln() - (cap as f64).ln()).max(0.0);
            row.iter_mut().for_each(|a| *a += *over - excess);
            moved = moved.max((excess - *over).abs());
            *over = excess;
        }
        done.push((a.clone(), moved));
    }
    done
}

/// The iterations stop with the first in which nothing moves by more than the tolerance, or with the last.
#[test]
fn stops_where_a_slow_one_has_converged() {
    let (tokens, experts, places, cap) = (9, 4, 3, 2);
    // Logarithms of f32 are off by some 1e-6, and so is by how much corrections move.
    let near = |moved: f64| (moved / f64::from(TOLERANCE) - 1.0).abs() < 0.05;
    let (mut stopped, mut by_cap, mut limited) = (0, 0, 0);
    for seed in 0..80u64 {
        // Experts of which all that is open must be taken, too.
        let start: Vec<f32> = (0..tokens * experts)
            .map(|i| {
                let (t, e) = (i / experts, i % experts);
                let open = e > 0 || t < 2 || seed % 2 == 0;
                let liked = if t < 3 { 2.0 } else { 0.0 };
                if open { liked + 4.0 * numerics::uniform(seed, &[i as u64]) } else { f32::NEG_INFINITY }
            })
            .collect();
        let expected = slowly(&start, experts, places, cap, 400);
        let converged = expected.iter().position(|(_, moved)| *moved <= f64::from(TOLERANCE));
        let capacity = Capacity::absolute(places);
        for most in [0, 1, 7, 400] {
            let router = CappedExpertChoice::new(capacity, cap).unwrap().iterations(most);
            let (mut a, mut scratch) = (start.clone(), vec![0.0; tokens * (experts + 2)]);
            let found = router.project(&mut a, experts, places, &mut scratch);
            let exact = converged.map_or(most, |at| most.min(at + 1));
            let uncertain = expected.iter().take(most).any(|(_, moved)| near(*moved));
            assert!(found == exact || uncertain, "seed {seed}: {found} of {most} iterations, not {exact}");
            limited += usize::from(found == most && most > 0);
            let Some((of_slow, _)) = found.checked_sub(1).map(|last| &expected[last]) else {
                assert_eq!(a, start);
                continue;
            };
            for (i, (a, slow)) in a.iter().zip(of_slow).enumerate() {
                let off = (f64::from(*a).exp() - slow.exp()).abs();
                assert!(off < 1e-5, "seed {seed}, {most} iterations, entry {i}: {a} and {slow}");
            }
            if found < most {
                stopped += 1;
                by_cap += usize::from(found > 10);
                // What is left to go: corrections move by ever less, by a factor of 0.99 at worst.
                let (end, _) = &expected[expected.len() - 1];
                let far = a.iter().zip(end).map(|(a, end)| (f64::from(*a).exp() - end.exp()).abs());
                assert!(far.fold(0.0, f64::max) < 1e-2, "seed {seed}");
            }
        }
    }
    println!("{stopped} {by_cap} {limited}");
    assert!(stopped > 50 && by_cap > 30 && limited > 100, "{stopped} {by_cap} {limited}");
}

/// Of three tokens of one expert, one has nothing; one of the two that are taken is above 1 by just so much.
#[test]
fn the_tolerance_itself_is_converged() {
    let router = CappedExpertChoice::new(Capacity::absolute(2), 1).unwrap();
    let iterations = |over: f32| router.project(&mut [-1e9, 0.0, over], 1, 2, &mut [0.0; 9]);
    assert_eq!(iterations(1e-4), 1);
    assert_eq!(iterations(1e-4f32.next_up()), 2);
}

/// The greatest total of scores where every expert takes `places` tokens and no token has more than `cap` experts.
fn best(scores: &Array2<f32>, places: u32, cap: usize) -> f64 {
    let (tokens, experts) = scores.dim();
    let sets: Vec<u32> = (0..1u32 << tokens).filter(|s| s.count_ones() == places).collect();
    let mut best = f64::NEG_INFINITY;
    for code in 0..sets.len().pow(experts as u32) {
        let of = |e: usize| sets[code / sets.len().pow(e as u32) % sets.len()];
        if (0..tokens).all(|t| (0..experts).filter(|&e| of(e) >> t & 1 == 1).count() <= cap) {
            let pairs = (0..experts)
                .flat_map(|e| (0..tokens).filter(move |t| of(e) >> t & 1 == 1).map(move |t| (t, e)));
            best = best.max(pairs.map(|at| f64::from(scores[at])).sum());
        }
    }
    best
}

/// Given enough iterations, the choice is the best there is under the cap: the programme's solution is whole.
#[test]
fn converges_to_the_linear_programme() {
    // Token 0 suits all, the others one expert each: three of the four want token 0 too.
    let (tokens, experts, places, cap) = (6, 4, 2, 2);
    let capacity = Capacity::absolute(places);
    let router = CappedExpertChoice::new(capacity, cap).unwrap().iterations(20_000);
    let mut binding = 0;
    for seed in 0..20u64 {
        let logits = Array2::from_shape_fn((tokens, experts), |(t, e)| {
            let own = t > 0 && (t - 1) % experts == e;
            numerics::uniform(seed, &[t as u64, e as u64]) + if own { 1.5 } else { 0.0 }
        });
        let mut scores = logits.clone();
        scores.rows_mut().into_iter().for_each(|mut row| numerics::softmax(row.as_slice_mut().unwrap()));
        let total = |router: CappedExpertChoice| {
            let mut out = Assignments::new();
            out.reset(tokens, experts).unwrap();
            router.route(&RouteInput::new(logits.view(), TokenContext::new()).unwrap(), &mut out).unwrap();
            let mut plan = RoutingPlan::new();
            plan.seal(&out).unwrap();
            let most = (0..tokens).map(|t| plan.choices(t).len()).max().unwrap();
            (out.granted().iter().map(|p| f64::from(p.weight)).sum::<f64>(), most)
        };
        let (found, most) = total(router);
        assert!(most <= cap, "seed {seed}: {most} experts");
        let expected = best(&scores, places as u32, cap);
        assert!((found - expected).abs() < 1e-4, "seed {seed}: {found}, {expected}");
        binding += usize::from(total(CappedExpertChoice::new(capacity, experts).unwrap()).1 > cap);
    }
    assert!(binding >= 3, "{binding}");
}
