//! Placements of experts on ranks, as text too, and the traffic that they cause.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use moe_core::placement::{Placement, TokenRoute, Traffic};

/// The holders of each expert of a layer.
fn layer(placement: &Placement, layer: usize) -> Vec<Vec<u32>> {
    (0..placement.experts()).map(|expert| placement.holders(layer, expert).to_vec()).collect()
}

fn single(ranks: &[u32]) -> Vec<Vec<u32>> {
    ranks.iter().map(|&rank| vec![rank]).collect()
}

#[test]
fn blocks_and_round_robin() {
    let blocks = Placement::blocks(2, 8, 3).unwrap();
    assert_eq!(layer(&blocks, 1), single(&[0, 0, 0, 1, 1, 1, 2, 2]));
    let round = Placement::round_robin(2, 8, 3).unwrap();
    assert_eq!(layer(&round, 1), single(&[0, 1, 2, 0, 1, 2, 0, 1]));
    assert_eq!(round.held_by(0, 1).collect::<Vec<_>>(), [1, 4, 7]);
    assert_eq!((round.layers(), round.experts(), round.ranks()), (2, 8, 3));
    // Ranks without experts are no error.
    assert_eq!(layer(&Placement::blocks(1, 2, 4).unwrap(), 0), single(&[0, 2]));
}

#[test]
fn by_load() {
    let placement = Placement::by_load(2, 6, 2, &[8, 7, 6, 5, 4, 0, 0, 4, 5, 6, 7, 8], 0).unwrap();
    // 8 to rank 0, 7 to 1, 6 to 1, 5 to 0; 13 each, so 4 to rank 0, and what is left to 1.
    assert_eq!(layer(&placement, 0), single(&[0, 1, 1, 0, 0, 1]));
    // Each layer for itself: the same in reverse.
    assert_eq!(layer(&placement, 1), single(&[1, 0, 0, 1, 1, 0]));
    // The first rank has half of the experts in the end, though the second has less to do.
    let placement = Placement::by_load(1, 4, 2, &[10, 1, 1, 1], 0).unwrap();
    assert_eq!(layer(&placement, 0), single(&[0, 1, 1, 0]));
}

#[test]
fn equal_loads_alternate() {
    let placement = Placement::by_load(1, 6, 2, &[1; 6], 0).unwrap();
    assert_eq!(layer(&placement, 0), single(&[0, 1, 0, 1, 0, 1]));
}

#[test]
fn hot_experts_are_copied() {
    // 12 is shared by two, then 7 by two, then 12 by three: shares 4, 4, 4, 3.5, 3.5, 3, 2.
    let placement = Placement::by_load(1, 4, 3, &[12, 7, 3, 2], 3).unwrap();
    // The 4s go to ranks 0, 1 and 2; 3.5 to 0 and 1; 3 to rank 2; room is 3 a rank, and 2 goes to rank 2.
    assert_eq!(layer(&placement, 0), [vec![0, 1, 2], vec![0, 1], vec![2], vec![2]]);
    // As many as there can be: everybody holds everything.
    let placement = Placement::by_load(1, 4, 3, &[0; 4], 8).unwrap();
    assert_eq!(layer(&placement, 0), vec![vec![0, 1, 2]; 4]);
}

#[test]
fn every_copy_is_on_a_rank_of_its_own() {
    for seed in 0..200u64 {
        let draw = |i: u64| (seed * 31 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let (layers, experts, ranks) = (2, 2 + (draw(1) % 9) as usize, 1 + (draw(2) % 5) as usize);
        let load: Vec<u64> = (0..(layers * experts) as u64).map(|i| draw(i + 9) % 1000).collect();
        let copies = draw(3) as usize % (experts * (ranks - 1) + 1);
        let placement = Placement::by_load(layers, experts, ranks, &load, copies).unwrap();
        for layer in 0..layers {
            let all: usize = (0..experts).map(|e| placement.holders(layer, e).len()).sum();
            assert_eq!(all, experts + copies);
            for expert in 0..experts {
                let holders = placement.holders(layer, expert);
                assert!(holders.is_sorted_by(|a, b| a < b) && holders.iter().all(|&r| (r as usize) < ranks));
            }
        }
        assert_eq!(placement.to_string().parse::<Placement>().unwrap(), placement);
    }
}

#[test]
fn the_home_serves_if_it_can() {
    let placement =
        Placement::from_holders(1, 2, 4, |_, e| if e == 0 { vec![3, 1] } else { vec![2] }).unwrap();
    assert_eq!(placement.holders(0, 0), [1, 3]);
    let serves = |token, home| placement.serving_rank(0, 0, token, home);
    assert_eq!(
        [(5, 1), (4, 3), (4, 0), (5, 0), (6, 2)].map(|(token, home)| serves(token, home)),
        [1, 3, 1, 3, 1]
    );
    assert_eq!(placement.serving_rank(0, 1, 9, 0), 2);
    assert!(placement.is_held(0, 0, 3) && !placement.is_held(0, 0, 2));
}

#[test]
fn traffic_by_hand() {
    // Ranks 0 and 1 hold two experts each; the fourth is on both.
    let text = "placement layers=1 experts=4 ranks=3\n0 0 1 1,2\n";
    let placement: Placement = text.parse().unwrap();
    let mut traffic = Traffic::new(3).unwrap();
    let route = |token, home, experts| TokenRoute { token, home, experts };
    // Both experts at home: nothing travels.
    traffic.add(&placement, 0, [route(0, 0, &[0, 1])]).unwrap();
    assert_eq!((traffic.rows_sent, traffic.rows_returned, traffic.imbalance()), (0, 0, 3.0));
    // From rank 2: both to rank 0 in one row; 2 to rank 1, and 3 stays at home; from 0, 3 goes to 2 for an odd token.
    let routes = [route(1, 2, &[0, 1][..]), route(2, 2, &[2, 3]), route(3, 0, &[3, 0])];
    traffic.add(&placement, 0, routes).unwrap();
    assert_eq!((traffic.tokens, traffic.rows_sent, traffic.rows_returned), (4, 3, 4));
    assert_eq!(traffic.rows_worked(), [5, 1, 2]);
    assert_eq!(traffic.bytes(100), (300, 400));
    assert_eq!(traffic.imbalance(), 5.0 * 3.0 / 8.0);
    // The busiest ranks had 2 and 3 rows.
    assert_eq!(traffic.waiting(), 5.0 * 3.0 / 8.0);
    traffic.add(&placement, 0, [route(0, 1, &[2, 3])]).unwrap();
    assert_eq!((traffic.imbalance(), traffic.waiting()), (1.5, 7.0 * 3.0 / 10.0));
    assert_eq!((Traffic::new(2).unwrap().imbalance(), Traffic::new(0).unwrap().waiting()), (0.0, 0.0));
}

#[test]
fn as_text() {
    let placement =
        Placement::from_holders(2, 3, 3, |l, e| if l == e { vec![0, 2] } else { vec![1] }).unwrap();
    let text = "placement layers=2 experts=3 ranks=3\n0,2 1 1\n1 0,2 1\n";
    assert_eq!(placement.to_string(), text);
    assert_eq!(text.parse::<Placement>().unwrap(), placement);
    let loose: Placement = "placement layers=1 experts=2 ranks=1\r\n 0 \t0\n\n".parse().unwrap();
    assert_eq!(loose, Placement::blocks(1, 2, 1).unwrap());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let text = |text: &str| text.parse::<Placement>().unwrap_err().to_string();
    let header = "placement layers=2 experts=2 ranks=2\n";
    assert_eq!(text(""), "placement, line 1: expected placement layers=L experts=E ranks=R, found ");
    assert!(text("placement layers=2 experts=2").contains("line 1"));
    assert!(text("placement layers=2 experts=2 ranks=2 more=1").contains("line 1"));
    assert!(text(&"é".repeat(99)).ends_with(&format!("found {}…", "é".repeat(40))));
    let of = |lines: &str| text(&format!("{header}{lines}"));
    assert_eq!(of("0 1"), "placement: expected lines of 2 layers, found 1");
    assert_eq!(of("0 1\n0 1\n1 1"), "placement, line 4: expected the end of the text, found 1 1");
    assert_eq!(of("0 1\n0"), "placement, line 3: expected holders of 2 experts, found 1");
    assert_eq!(of("0 x"), "placement, line 2: expected ranks such as 0 or 0,1, found x");
    assert_eq!(of("0 0,"), "placement, line 2: expected ranks such as 0 or 0,1, found 0,");
    assert_eq!(of("0 1\n0 2"), "placement, layer 1, expert 1: expected a rank below 2, found 2");
    assert_eq!(of("0 1,1"), "placement, layer 0, expert 1: expected each rank once, found rank 1 twice");
    // A claim of the first line takes no memory.
    assert!(text("placement layers=99999999999 experts=99999999999 ranks=7\n0").contains("placement"));
    assert!(text("placement layers=9999999999999 experts=1 ranks=7\n0").contains("found 1"));

    let error = |placement: moe_core::Result<Placement>| placement.unwrap_err().to_string();
    let none = |l, e, r| {
        let expected = "placement: expected at least one layer, expert and rank, found";
        assert_eq!(
            error(Placement::blocks(l, e, r)),
            format!("{expected} {l} layers, {e} experts, {r} ranks")
        );
        assert!(Placement::round_robin(l, e, r).is_err() && Placement::by_load(l, e, r, &[], 0).is_err());
    };
    none(0, 1, 1);
    none(1, 0, 1);
    none(1, 1, 0);
    assert_eq!(
        error(Placement::from_holders(1, 2, 2, |_, e| (e == 0).then_some(1))),
        "placement, layer 0, expert 1: expected at least one rank, found none"
    );
    assert_eq!(error(Placement::by_load(1, 2, 2, &[1], 0)), "placement, load: expected 2 numbers, found 1");
    assert_eq!(
        error(Placement::by_load(1, 2, 2, &[1, 1], 3)),
        "placement, copies: expected at most 2, found 3"
    );

    let placement = Placement::blocks(1, 2, 2).unwrap();
    let add = |ranks, layer, home, experts| {
        let mut traffic = Traffic::new(ranks).unwrap();
        traffic.add(&placement, layer, [TokenRoute { token: 0, home, experts }]).unwrap_err().to_string()
    };
    assert_eq!(add(3, 0, 0, &[0]), "traffic, placement: expected 3 ranks, found 2");
    assert_eq!(add(2, 1, 0, &[0]), "traffic, layer: expected a number below 1, found 1");
    assert_eq!(add(2, 0, 2, &[0]), "traffic, home: expected a number below 2, found 2");
    assert_eq!(add(2, 0, 0, &[2]), "traffic, expert: expected a number below 2, found 2");
}
