//! How work is cut over the threads of the rayon pool.
//!
//! Only `join` and parallel iterators over ranges are used, which allocate nothing.

use std::ops::Range;

use moe_core::{Result as CoreResult, RowWork};
use ndarray::{ArrayViewMut2, Axis};

use crate::chunk::Chunk;

/// Runs `work` inside the rayon pool the caller is in, or the global one, so that the parallel passes within start
/// without crossing into it again. A model enters once a forward pass.
pub fn enter<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::join(work, || ()).0
}

/// Whether this thread may wait for another pass to end: it is no worker of a rayon pool, which would hold up whatever
/// stands below on its stack (see [`Experts`](moe_core::Experts#waiting)).
pub fn may_wait() -> bool {
    rayon::current_thread_index().is_none()
}

/// [`enter`] for work of that many multiply-adds, if it is so much that another thread will take part: otherwise no pass
/// within leaves this thread, and waking another would take longer than the work.
pub(crate) fn enter_if_worth<T: Send>(cost: usize, work: impl FnOnce() -> T + Send) -> T {
    if worth_threads(cost) { enter(work) } else { work() }
}

/// What [`Experts::over_rows`](moe_core::Experts::over_rows) promises, with the threads of the rayon pool: for banks that
/// work in it. A batch too small to share stays on this thread.
///
/// # Errors
///
/// That of the earliest stretch that `work` fails on.
pub fn over_rows(rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> CoreResult<()> {
    if worth_threads(rows.len()) { over_halves(0, rows, work) } else { work(0, rows) }
}

fn over_halves(first: usize, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> CoreResult<()> {
    /// Numbers below which a stretch is not cut again.
    const STRETCH: usize = SERIAL / 8;
    let count = rows.nrows();
    if count <= 1 || rows.len() <= STRETCH {
        return work(first, rows);
    }
    let (left, right) = rows.split_at(Axis(0), count / 2);
    let (left, right) =
        rayon::join(|| over_halves(first, left, work), || over_halves(first + count / 2, right, work));
    left.and(right)
}

/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 17;

/// Runs `work(i, piece i)` for every task of `tasks`, where the pieces lie one after the other in `memory` and `start(i)`
/// is where piece i begins (for i up to and including `tasks.end`), relative to the start of `memory` at `tasks.start`.
///
/// `cost` is the number of multiply-adds of everything; little work stays on this thread.
pub(crate) fn for_each_piece<W>(
    tasks: Range<usize>,
    memory: &mut [Chunk],
    start: &(impl Fn(usize) -> usize + Sync),
    cost: usize,
    work: &W,
) where
    W: Fn(usize, &mut [Chunk]) + Sync,
{
    if cost < SERIAL {
        serial(tasks, memory, start, work);
    } else {
        parallel(tasks, memory, start, work);
    }
}

fn serial<W: Fn(usize, &mut [Chunk])>(
    tasks: Range<usize>,
    mut memory: &mut [Chunk],
    start: &impl Fn(usize) -> usize,
    work: &W,
) {
    for i in tasks {
        let (piece, rest) = memory.split_at_mut(start(i + 1) - start(i));
        work(i, piece);
        memory = rest;
    }
}

fn parallel<W>(tasks: Range<usize>, memory: &mut [Chunk], start: &(impl Fn(usize) -> usize + Sync), work: &W)
where
    W: Fn(usize, &mut [Chunk]) + Sync,
{
    if tasks.len() <= 1 {
        return serial(tasks, memory, start, work);
    }
    let middle = tasks.start + tasks.len() / 2;
    let (left, right) = memory.split_at_mut(start(middle) - start(tasks.start));
    rayon::join(
        || parallel(tasks.start..middle, left, start, work),
        || parallel(middle..tasks.end, right, start, work),
    );
}

/// Whether work of that many multiply-adds, or moved floats, is worth a second thread.
pub(crate) fn worth_threads(cost: usize) -> bool {
    cost >= SERIAL
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_task_gets_its_own_piece_once() {
        let sizes = [3, 0, 7, 1, 1, 4, 0, 9, 2, 5, 0];
        let starts: Vec<usize> = std::iter::once(0)
            .chain(sizes.iter().scan(0, |sum, n| {
                Some({
                    *sum += n;
                    *sum
                })
            }))
            .collect();
        for cost in [0, usize::MAX] {
            let mut memory = vec![Chunk::ZERO; starts[sizes.len()]];
            let visits: Vec<AtomicUsize> = sizes.iter().map(|_| AtomicUsize::new(0)).collect();
            for_each_piece(0..sizes.len(), &mut memory, &|i| starts[i], cost, &|i, piece| {
                assert_eq!(piece.len(), sizes[i]);
                visits[i].fetch_add(1, Ordering::Relaxed);
                piece.fill(Chunk([i as f32 + 1.0; 16]));
            });
            assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1));
            for (i, n) in sizes.iter().enumerate() {
                assert!(memory[starts[i]..starts[i] + n].iter().all(|c| c[0] == i as f32 + 1.0));
            }
        }
    }
}
