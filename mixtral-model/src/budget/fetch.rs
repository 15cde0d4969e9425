//! Reading experts while others compute.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::place::{ExpertPlace, Loaded};

/// Threads that read at the same time. A disk wants several requests at once to be fast; more than these bring nothing.
const READERS: usize = 4;

/// An expert that is to be read.
pub(super) struct Wanted<'p> {
    /// Whatever the caller calls it.
    pub(super) expert: usize,
    pub(super) place: &'p ExpertPlace,
    pub(super) memory: [MmapMut; 3],
}

/// One of its matrices.
struct Job<'p> {
    expert: usize,
    matrix: usize,
    place: &'p ExpertPlace,
    memory: MmapMut,
}

struct Done {
    expert: usize,
    matrix: usize,
    at: Instant,
    memory: MmapMut,
    read: io::Result<usize>,
}

/// An expert of which not all has been read.
#[derive(Default)]
struct Partial {
    matrices: [Option<(MmapMut, usize)>; 3],
    /// Matrices that came, read or not.
    came: usize,
    error: Option<(usize, io::Error)>,
}

/// What came of an expert: its weights, or which matrix failed, and why.
pub(super) type Fetched = (usize, Result<Loaded, (usize, io::Error)>);

/// Experts on their way.
pub(super) struct Fetch<'p> {
    jobs: Sender<Job<'p>>,
    done: Receiver<Done>,
    partial: Vec<(usize, Partial)>,
    /// Time that was spent waiting for the disk.
    pub(super) waited: Duration,
    begun: Instant,
    /// When the last matrix came.
    ended: Instant,
}

impl<'p> Fetch<'p> {
    /// Runs `work` with threads that read what it [asks for](Self::ask), as many as so many experts keep busy. They end with it.
    ///
    /// # Errors
    ///
    /// That of the system where it gives no thread.
    pub(super) fn run<T>(experts: usize, work: impl FnOnce(&mut Fetch<'p>) -> T) -> io::Result<T> {
        let (jobs, to_do) = channel::<Job<'p>>();
        let (report, done) = channel();
        let to_do = Mutex::new(to_do);
        thread::scope(|scope| {
            for n in 0..READERS.min(3 * experts).max(1) {
                let report = report.clone();
                let to_do = &to_do;
                let reader = move || read_all(to_do, &report);
                let begun = thread::Builder::new().name("experts".to_owned()).spawn_scoped(scope, reader);
                // One is enough to come to an end.
                if n == 0 {
                    begun?;
                }
            }
            drop(report);
            let now = Instant::now();
            let (partial, waited) = (Vec::new(), Duration::ZERO);
            let mut fetch = Fetch { jobs, done, partial, waited, begun: now, ended: now };
            let result = work(&mut fetch);
            // Readers end when nobody can ask any more.
            drop(fetch);
            Ok(result)
        })
    }

    /// Time from the beginning to the last matrix that came.
    pub(super) fn reading(&self) -> Duration {
        self.ended.saturating_duration_since(self.begun)
    }

    /// Asks for an expert.
    pub(super) fn ask(&mut self, wanted: Wanted<'p>) {
        let Wanted { expert, place, memory } = wanted;
        self.partial.push((expert, Partial::default()));
        for (matrix, memory) in memory.into_iter().enumerate() {
            // Readers listen as long as this is there.
            let _ = self.jobs.send(Job { expert, matrix, place, memory });
        }
    }

    /// Waits for the next expert to be whole, in whatever order they come; none if nothing is on its way.
    pub(super) fn next(&mut self) -> Option<Fetched> {
        while !self.partial.is_empty() {
            let since = Instant::now();
            let came = self.done.recv();
            self.waited += since.elapsed();
            let Ok(Done { expert, matrix, at: ended, memory, read }) = came else {
                // All readers are gone: nobody reads any more.
                let (expert, _) = self.partial.swap_remove(0);
                return Some((expert, Err((0, io::Error::other("reading ended")))));
            };
            let Some(at) = self.partial.iter().position(|(known, _)| *known == expert) else { continue };
            let partial = &mut self.partial[at].1;
            partial.came += 1;
            self.ended = self.ended.max(ended);
            match read {
                Ok(skip) => partial.matrices[matrix] = Some((memory, skip)),
                Err(error) => partial.error = Some((matrix, error)),
            }
            if partial.came == partial.matrices.len() {
                let (expert, Partial { matrices, error, .. }) = self.partial.swap_remove(at);
                return Some(match (matrices, error) {
                    ([Some(w1), Some(w2), Some(w3)], None) => (expert, Ok(Loaded::new([w1, w2, w3]))),
                    (_, error) => {
                        (expert, Err(error.unwrap_or_else(|| (0, io::ErrorKind::UnexpectedEof.into()))))
                    }
                });
            }
        }
        None
    }
}

/// What a thread does: one matrix after the other.
fn read_all(to_do: &Mutex<Receiver<Job<'_>>>, report: &Sender<Done>) {
    loop {
        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { expert, matrix, place, mut memory }) = job else { return };
        // A panic must not leave somebody waiting for the matrix.
        let read = catch_unwind(AssertUnwindSafe(|| place.0[matrix].read(&mut memory)));
        let read = read.unwrap_or_else(|_| Err(io::Error::other("reading panicked")));
        if report.send(Done { expert, matrix, at: Instant::now(), memory, read }).is_err() {
            return;
        }
    }
}
