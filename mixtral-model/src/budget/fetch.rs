//! Reading experts while others compute.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::place::{ExpertPlace, Loaded, MatrixPlace};

/// Threads that read at the same time. A disk wants several requests at once to be fast; more than these bring nothing.
const READERS: usize = 4;

/// Threads that read what they are asked for, in the order in which they are asked, as long as this is there.
#[derive(Debug)]
pub(super) struct Readers {
    jobs: Sender<Job>,
    busy: Arc<Mutex<Busy>>,
}

/// When something was being read.
#[derive(Debug, Default)]
struct Busy {
    /// Reads at this moment.
    active: usize,
    /// Since when there has been one.
    since: Option<Instant>,
    /// Time before that.
    total: Duration,
    /// Bytes that were read.
    bytes: u64,
}

/// A matrix that is to be read.
struct Job {
    expert: usize,
    matrix: usize,
    place: MatrixPlace,
    memory: MmapMut,
    abandoned: Arc<AtomicBool>,
    report: Sender<Done>,
}

/// What came of a matrix.
struct Done {
    expert: usize,
    matrix: usize,
    memory: MmapMut,
    read: io::Result<usize>,
}

/// An expert of which not all has come.
#[derive(Debug)]
struct Partial {
    expert: usize,
    matrices: [Option<(MmapMut, usize)>; 3],
    /// Matrices that came, read or not.
    came: usize,
    error: Option<(usize, io::Error)>,
    abandoned: Arc<AtomicBool>,
}

/// What came of an expert: its weights, or which matrix failed, and why.
pub(super) type Fetched = (usize, Result<Loaded, (usize, io::Error)>);

/// Experts on their way.
#[derive(Debug)]
pub(super) struct Fetch {
    jobs: Sender<Job>,
    report: Sender<Done>,
    done: Receiver<Done>,
    partial: Vec<Partial>,
    /// What is whole and was not asked for yet.
    ready: Vec<Fetched>,
    /// Memory of experts that nobody wants any more.
    left: Vec<MmapMut>,
    /// Time that was spent waiting for the disk.
    pub(super) waited: Duration,
}

impl Readers {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// That of the system where it gives no thread.
    pub(super) fn new() -> io::Result<Self> {
        let (jobs, to_do) = channel::<Job>();
        let (to_do, busy) = (Arc::new(Mutex::new(to_do)), Arc::new(Mutex::new(Busy::default())));
        for _ in 0..READERS {
            let (to_do, busy) = (to_do.clone(), busy.clone());
            let reader = thread::Builder::new().name("reader".to_owned());
            reader.spawn(move || read_all(&to_do, &busy))?;
        }
        Ok(Self { jobs, busy })
    }

    /// Nothing on its way yet.
    pub(super) fn fetch(&self) -> Fetch {
        let (report, done) = channel();
        let (partial, ready, left) = (Vec::new(), Vec::new(), Vec::new());
        Fetch { jobs: self.jobs.clone(), report, done, partial, ready, left, waited: Duration::ZERO }
    }

    /// Bytes that were read, and the time in which something was being read.
    pub(super) fn read(&self) -> (u64, Duration) {
        let busy = lock(&self.busy);
        (busy.bytes, busy.total + busy.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

impl Fetch {
    /// Asks for an expert, whatever the caller calls it.
    pub(super) fn ask(&mut self, expert: usize, place: &ExpertPlace, memory: [MmapMut; 3]) {
        let abandoned = Arc::new(AtomicBool::new(false));
        for (matrix, memory) in memory.into_iter().enumerate() {
            let (place, report) = (place.0[matrix].clone(), self.report.clone());
            let job = Job { expert, matrix, place, memory, abandoned: abandoned.clone(), report };
            if let Err(SendError(job)) = self.jobs.send(job) {
                let Job { expert, matrix, memory, report, .. } = job;
                let read = Err(io::Error::other("nobody reads any more"));
                let _ = report.send(Done { expert, matrix, memory, read });
            }
        }
        let matrices = [const { None }; 3];
        self.partial.push(Partial { expert, matrices, came: 0, error: None, abandoned });
    }

    /// Whether an expert is on its way, and wanted.
    pub(super) fn has(&self, expert: usize) -> bool {
        self.partial.iter().any(|partial| partial.expert == expert && !partial.is_abandoned())
    }

    /// Experts that were asked for and did not yet come.
    pub(super) fn len(&self) -> usize {
        self.partial.len() + self.ready.len()
    }

    /// Abandons what is on its way, but for these experts.
    pub(super) fn abandon_but(&self, experts: &[usize]) {
        for partial in self.partial.iter().filter(|partial| !experts.contains(&partial.expert)) {
            partial.abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// Experts that were abandoned and whose memory may still be read into.
    pub(super) fn abandoned(&self) -> usize {
        self.partial.iter().filter(|partial| partial.is_abandoned()).count()
    }

    /// Waits until nothing is read any more that was abandoned, which is soon, and gives its memory.
    pub(super) fn settle(&mut self) -> Vec<MmapMut> {
        while self.abandoned() > 0 {
            // There is a sender as long as this is there.
            let Ok(came) = self.done.recv() else { break };
            let whole = self.take(came);
            self.ready.extend(whole);
        }
        std::mem::take(&mut self.left)
    }

    /// Waits for the next expert to be whole that is wanted, in whatever order they come; none if none is on its way.
    pub(super) fn next(&mut self) -> Option<Fetched> {
        while self.ready.is_empty() && self.partial.iter().any(|partial| !partial.is_abandoned()) {
            let since = Instant::now();
            let came = self.done.recv();
            self.waited += since.elapsed();
            let Ok(came) = came else { break };
            let whole = self.take(came);
            self.ready.extend(whole);
        }
        self.ready.pop()
    }

    fn take(&mut self, Done { expert, matrix, memory, read }: Done) -> Option<Fetched> {
        let at = self.partial.iter().position(|partial| partial.expert == expert)?;
        let partial = &mut self.partial[at];
        partial.came += 1;
        match read {
            _ if partial.is_abandoned() => self.left.push(memory),
            Ok(skip) => partial.matrices[matrix] = Some((memory, skip)),
            Err(error) => partial.error = Some((matrix, error)),
        }
        if partial.came < partial.matrices.len() {
            return None;
        }
        let partial = self.partial.swap_remove(at);
        if partial.is_abandoned() {
            self.left.extend(partial.matrices.into_iter().flatten().map(|(memory, _)| memory));
            return None;
        }
        Some(match (partial.matrices, partial.error) {
            ([Some(w1), Some(w2), Some(w3)], None) => (expert, Ok(Loaded::new([w1, w2, w3]))),
            (_, error) => (expert, Err(error.unwrap_or_else(|| (0, io::ErrorKind::UnexpectedEof.into())))),
        })
    }
}

impl Drop for Fetch {
    /// Nothing is read any more when this is gone: its memory counts until then.
    fn drop(&mut self) {
        self.abandon_but(&[]);
        self.settle();
    }
}

impl Partial {
    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

fn lock(busy: &Mutex<Busy>) -> MutexGuard<'_, Busy> {
    busy.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Busy {
    fn begin(&mut self) {
        self.active += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        self.active -= 1;
        if self.active == 0 {
            self.total += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
    }
}

/// What a thread does: one matrix after the other.
fn read_all(to_do: &Mutex<Receiver<Job>>, busy: &Mutex<Busy>) {
    loop {
        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { expert, matrix, place, mut memory, abandoned, report }) = job else { return };
        lock(busy).begin();
        // A panic must not leave somebody waiting for the matrix.
        let mut go_on = |bytes: usize| {
            lock(busy).bytes += bytes as u64;
            !abandoned.load(Ordering::Relaxed)
        };
        let read = catch_unwind(AssertUnwindSafe(|| place.read(&mut memory, &mut go_on)));
        let read = read.unwrap_or_else(|_| Err(io::Error::other("reading panicked")));
        lock(busy).end();
        // Nobody may want it any more.
        let _ = report.send(Done { expert, matrix, memory, read });
    }
}
