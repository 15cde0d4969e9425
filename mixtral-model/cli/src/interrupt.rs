//! Ctrl-C, and other signals that ask for an end.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mixtral_model::{Observed, Observer};
use ndarray::ArrayView2;

use crate::failure::{Failure, Result};

/// What shells report of a command that SIGINT ended.
pub(crate) const EXIT_STATUS: u8 = 130;

/// Whether the user wishes an end, by Ctrl-C, SIGTERM, SIGHUP or SIGQUIT.
///
/// While the model [works](Self::during), the first signal is a wish that the work looks at between layers, and the second
/// ends the process; at all other times the first does. SIGXFSZ is none: the write that goes beyond the limit of a file's size
/// fails, as where a disk is full.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<State>);

/// Puts something in order.
pub(crate) type Tidy = Box<dyn Fn() + Send>;

#[derive(Default)]
struct State {
    at_work: AtomicBool,
    wished: AtomicBool,
    /// What is to be done before the process is ended.
    tidy: Mutex<Option<Tidy>>,
    /// Exit status that belongs to the last signal, or 0.
    status: AtomicU8,
}

impl Interrupt {
    pub(crate) fn install() -> Result<Self, Failure> {
        let this = Self::default();
        let Self(state) = this.clone();
        handle(move |status| {
            state.status.store(status, Ordering::SeqCst);
            if !state.at_work.load(Ordering::SeqCst) || state.wished.swap(true, Ordering::SeqCst) {
                // Whoever holds it has only put something there.
                if let Some(tidy) = &*state.tidy.lock().unwrap_or_else(PoisonError::into_inner) {
                    tidy();
                }
                std::process::exit(status.into());
            }
        })?;
        Ok(this)
    }

    /// Does work that looks at [`wished`](Self::wished), and comes to an end by itself if so. What was wished during other work
    /// is wished still.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.at_work.store(true, Ordering::SeqCst);
        let result = work();
        self.0.at_work.store(false, Ordering::SeqCst);
        result
    }

    /// The same for work that writes a file or a directory, of which nothing unfinished is left however it ends.
    pub(crate) fn during_writing<T>(&self, path: &Path, work: impl FnOnce() -> T) -> T {
        let path = path.to_owned();
        self.before_an_end(Some(Box::new(move || mixtral_model::remove_unfinished(&path))));
        let result = self.during(work);
        self.before_an_end(None);
        result
    }

    /// What to do when a signal ends the process, from now on.
    pub(crate) fn before_an_end(&self, tidy: Option<Tidy>) {
        *self.0.tidy.lock().unwrap_or_else(PoisonError::into_inner) = tidy;
    }

    /// The exit status of a command that ended because it was wished.
    pub(crate) fn status(&self) -> u8 {
        match self.0.status.load(Ordering::SeqCst) {
            0 => EXIT_STATUS,
            status => status,
        }
    }

    /// Forgets a wish that was meant for a part of the work, as Ctrl-C while an answer is given; `false` if the signal was another,
    /// which is meant for all of it.
    pub(crate) fn forget_ctrl_c(&self) -> bool {
        let forgotten = self.status() == EXIT_STATUS;
        if forgotten {
            self.0.wished.store(false, Ordering::SeqCst);
            self.0.status.store(0, Ordering::SeqCst);
        }
        forgotten
    }

    /// Ends what is asked about it if the user wishes so.
    pub(crate) fn go_on(&self) -> ControlFlow<()> {
        if self.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub(crate) fn wished(&self) -> bool {
        self.0.wished.load(Ordering::SeqCst)
    }
}

/// Calls `handler` with the exit status that belongs to it when a signal asks for an end.
#[cfg(unix)]
fn handle(handler: impl Fn(u8) + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
    let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    // That somebody waits for it is why SIGXFSZ does not end the process.
    let signals = [SIGINT, SIGTERM, SIGQUIT, SIGXFSZ].into_iter().chain(hang_up);
    let mut signals = signal_hook::iterator::Signals::new(signals).map_err(Failure::Signals)?;
    let wait = move || {
        let ends = signals.forever().filter(|&signal| signal != SIGXFSZ);
        ends.for_each(|signal| handler(u8::try_from(128 + signal).unwrap_or(EXIT_STATUS)));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(Failure::Signals)?;
    Ok(())
}

/// Whether whoever started this process wishes a signal to do nothing, as `nohup` does, or the system does not tell.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn handle(handler: impl Fn(u8) + Send + 'static) -> Result<()> {
    let failed = |error| Failure::Signals(std::io::Error::other(error));
    ctrlc::set_handler(move || handler(EXIT_STATUS)).map_err(failed)
}

impl Observer for Interrupt {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn layer_done(&mut self, _: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        Ok(self.go_on())
    }
}
