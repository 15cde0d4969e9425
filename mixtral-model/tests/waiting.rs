//! Passes that share a store with fewer places than there are passes: all come through, and with the same bits.
//!
//! The pool that counts is the global one, whose number of threads is fixed once a process: each number gets a process of its
//! own, this program again, which is ended if it hangs.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mixtral_model::{
    Checkpoint, Config, Error, Model, Observed, Observer, SessionOptions, Step, Wanted, Workspace,
};
use moe_core::memory::held;
use moe_core::{
    Dispatch, Error as CoreError, Experts, Reserve, Result as CoreResult, Routed, RowWork, Scratch,
    ScratchValue,
};
use moe_kernels::Backend;
use ndarray::ArrayViewMut2;

/// Long enough for a busy machine; a pass takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something with a number of places.
struct Store {
    free: Mutex<usize>,
    given_back: Condvar,
}

impl Store {
    fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(places), given_back: Condvar::new() })
    }

    fn free(&self) -> usize {
        *self.free.lock().unwrap()
    }

    fn take(self: &Arc<Self>, may_wait: bool) -> CoreResult<Place> {
        let mut free = self.free.lock().unwrap();
        while *free == 0 {
            if !may_wait {
                return Err(CoreError::Busy { what: "places" });
            }
            free = self.given_back.wait(free).unwrap();
        }
        *free -= 1;
        Ok(Place(self.clone()))
    }
}

/// A place that is taken.
struct Place(Arc<Store>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap() += 1;
        self.0.given_back.notify_one();
    }
}

/// The places that a pass has, in whatever stores.
#[derive(Default)]
struct Places(Vec<Place>);

impl ScratchValue for Places {
    fn bytes(&self) -> usize {
        held(&self.0)
    }
}

/// A bank whose passes need a place of its store each; those of all layers share one.
struct Bounded {
    bank: Box<dyn Experts>,
    store: Arc<Store>,
    /// Fails instead of computing.
    broken: bool,
}

impl Bounded {
    fn has_place(&self, places: &Places) -> bool {
        places.0.iter().any(|place| Arc::ptr_eq(&place.0, &self.store))
    }
}

impl Experts for Bounded {
    fn experts(&self) -> usize {
        self.bank.experts()
    }

    fn dim(&self) -> usize {
        self.bank.dim()
    }

    fn forward(&self, x: Dispatch<'_>, scratch: &mut Scratch, out: ArrayViewMut2<'_, f32>) -> CoreResult<()> {
        assert!(self.has_place(scratch.of()), "a pass has its place");
        if self.broken {
            return Err(CoreError::experts("broken"));
        }
        self.bank.forward(x, scratch, out)
    }

    fn reserve(&self, request: &Reserve, scratch: &mut Scratch) -> CoreResult<()> {
        let places = scratch.of();
        if !self.has_place(places) {
            assert_eq!(request.layer, 0, "later layers find what the first has reserved");
            places.0.push(self.store.take(request.may_wait)?);
        }
        Ok(())
    }

    fn release(&self, scratch: &mut Scratch) {
        scratch.of::<Places>().0.retain(|place| !Arc::ptr_eq(&place.0, &self.store));
    }

    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> CoreResult<()> {
        self.bank.over_rows(rows, work)
    }
}

fn demo() -> Model {
    let dir = Path::new("demo");
    let config = Config::from_json(include_bytes!("../cli/demo/config.json"), dir).unwrap();
    let weights = Bytes::from_static(include_bytes!("../cli/demo/model.safetensors"));
    Model::load(config, &Checkpoint::from_bytes(dir, weights).unwrap(), Backend::best()).unwrap()
}

/// The demo over banks that share a store; the bank of one layer may be broken.
fn bounded(store: &Arc<Store>, broken: Option<usize>) -> Model {
    let bank = |n, bank| -> Box<dyn Experts> {
        Box::new(Bounded { bank, store: store.clone(), broken: broken == Some(n) })
    };
    demo().map_banks(bank).unwrap()
}

/// The bits of a caller's passes: a prompt, large enough for many threads, and two more tokens.
fn passes(model: &Model, caller: usize, observer: &mut dyn Observer) -> Result<Vec<u32>, Error> {
    let mut session = model.session(SessionOptions::default())?;
    let mut workspace = Workspace::new();
    let prompt: Vec<u32> = (0..120).map(|i| (i * 17 + caller as u32) % 2048).collect();
    let mut bits = vec![];
    for tokens in [&prompt[..], &[7], &[8]] {
        let mut steps = [Step::new(&mut session, tokens).wanted(Wanted::Last)];
        let logits = model.forward(&mut steps, &mut workspace, observer)?;
        bits.extend(logits.iter().map(|x| x.to_bits()));
    }
    Ok(bits)
}

/// Runs `work` on a thread of its own, which must come to an end.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(PATIENCE).expect("no hang, and no panic")
}

#[test]
fn more_passes_than_places() {
    for threads in [3, 4, 8] {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--exact", "with_the_global_pool", "--ignored"])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(20)),
                None => {
                    child.kill().unwrap();
                    panic!("{threads} threads: still not through")
                }
            }
        };
        assert!(status.success(), "{threads} threads");
    }
}

#[test]
#[ignore = "more_passes_than_places runs it, with different numbers of threads"]
fn with_the_global_pool() {
    let plain = demo();
    let expected: Vec<_> = (0..8).map(|caller| passes(&plain, caller, &mut ()).unwrap()).collect();
    for (callers, places) in [(3, 1), (5, 2), (8, 3)] {
        let store = Store::new(places);
        let model = bounded(&store, None);
        let found = thread::scope(|scope| {
            let passes = |caller| passes(&model, caller, &mut ()).unwrap();
            let callers: Vec<_> = (0..callers).map(|caller| scope.spawn(move || passes(caller))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(found, expected[..callers], "{callers} callers, {places} places");
        assert_eq!(store.free(), places);
    }
}

#[test]
fn a_worker_of_a_pool_is_told_and_does_not_wait() {
    in_time(|| {
        let store = Store::new(1);
        let model = bounded(&store, None);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let taken = store.take(true).unwrap();
        let error = pool.install(|| passes(&model, 0, &mut ())).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "places: taken by other passes, on a thread that must not wait for them"
        );
        drop(taken);
        let found = pool.install(|| passes(&model, 0, &mut ())).unwrap();
        assert_eq!(found, passes(&demo(), 0, &mut ()).unwrap());
    });
}

#[test]
fn a_pass_that_fails_gives_back() {
    /// Panics in the second layer.
    struct Bad;
    impl Observer for Bad {
        fn routed(&mut self, routed: &Routed<'_>) -> Observed {
            assert_eq!(routed.layer, 0, "on purpose");
            Ok(())
        }
    }
    in_time(|| {
        let store = Store::new(1);
        let model = bounded(&store, Some(1));
        let error = passes(&model, 0, &mut ()).unwrap_err();
        assert_eq!(error.to_string(), "layer 1, experts: broken");
        assert_eq!(store.free(), 1);
        let model = bounded(&store, None);
        assert!(catch_unwind(AssertUnwindSafe(|| passes(&model, 0, &mut Bad))).is_err());
        assert_eq!(store.free(), 1);
        passes(&model, 0, &mut ()).unwrap();
    });
}
