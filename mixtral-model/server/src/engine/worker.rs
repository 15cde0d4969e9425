//! The engine's thread: who takes part in which pass, and what comes of it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use mixtral_model::{Error, GenerateOptions, Generation, Session, Stops, Wanted, Workspace};

use moe_core::Locality;

use super::job::{Job, failure};
use super::prefixes::Prefixes;
use super::watch::Watch;
use super::{Core, Event, Failure, Waiting};

/// How long to look away where all clients are behind with reading.
const PAUSE: Duration = Duration::from_millis(5);

/// Works until nobody can ask for anything any more, and all that was asked is done.
pub(super) fn run(core: &Core, queue: &Receiver<Waiting>) {
    let mut worker = Worker {
        core,
        workspace: Workspace::new(),
        waiting: VecDeque::new(),
        jobs: Vec::new(),
        prefixes: Prefixes::new(core.options.prefix_bytes),
    };
    while worker.receive(queue) {
        if catch_unwind(AssertUnwindSafe(|| worker.round())).is_err() {
            worker.begin_anew();
        }
    }
}

struct Worker<'c> {
    core: &'c Core,
    workspace: Workspace,
    waiting: VecDeque<Waiting>,
    /// Those running, the oldest first.
    jobs: Vec<Job<'c>>,
    prefixes: Prefixes,
}

impl Worker<'_> {
    /// Takes what has come, waiting where there is nothing else to do; `false` where all is done.
    fn receive(&mut self, queue: &Receiver<Waiting>) -> bool {
        if self.jobs.is_empty() && self.waiting.is_empty() {
            match queue.recv() {
                Ok(waiting) => self.waiting.push_back(waiting),
                Err(_) => return false,
            }
        } else if !self.jobs.is_empty() && !self.jobs.iter().any(Job::is_ready) {
            match queue.recv_timeout(PAUSE) {
                Ok(waiting) => self.waiting.push_back(waiting),
                Err(RecvTimeoutError::Timeout) => {}
                // Those running are yet to be told.
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
        self.waiting.extend(queue.try_iter());
        true
    }

    /// Lets go of who has left, admits who waits, and gives everybody a step.
    fn round(&mut self) {
        let (now, ending) = (Instant::now(), self.core.ending.load(Ordering::SeqCst));
        let metrics = &self.core.metrics;
        let limit = self.core.options.request_time;
        self.waiting.retain(|waiting| {
            let failure = match () {
                () if waiting.events.is_closed() => None,
                () if ending => Some(Failure::Ending),
                () if waiting.since + limit < now => Some(Failure::Late),
                () => return true,
            };
            match failure {
                // Nothing was told yet, so that there is room.
                Some(failure) => drop(waiting.events.try_send(Event::Failed(failure))),
                None => metrics.cancelled.add(1),
            }
            metrics.waiting.sub(1);
            false
        });
        for job in &mut self.jobs {
            if job.is_left() {
                metrics.cancelled.add(1);
                job.over = true;
            } else if ending {
                job.fail(Failure::Ending);
            } else if job.deadline < now {
                job.fail(Failure::Late);
            }
        }
        self.let_go();
        while self.jobs.len() < self.core.options.sessions {
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.admit(waiting);
        }
        metrics.running.set(self.jobs.len() as u64);

        let (together, alone) = self.choose();
        self.pass(together);
        for job in alone {
            self.pass(vec![job]);
        }
        self.let_go();
        metrics.running.set(self.jobs.len() as u64);
        metrics.prefix_bytes.set(self.prefixes.bytes() as u64);
    }

    /// Gives up who is running, after a panic: what their sessions and the workspace hold is anybody's guess.
    fn begin_anew(&mut self) {
        for mut job in self.jobs.drain(..) {
            job.fail(Failure::Model("a pass ended by a panic".to_owned()));
        }
        self.workspace = Workspace::new();
        self.core.metrics.running.set(0);
    }

    /// Removes the jobs that are over, and keeps what they have read.
    fn let_go(&mut self) {
        for job in self.jobs.extract_if(.., |job| job.over) {
            if job.shared {
                self.prefixes.keep(job.generation.into_parts().0);
            }
        }
    }

    /// Begins a request, with room for all its keys and values.
    fn admit(&mut self, waiting: Waiting) {
        let Waiting { request, events, since, .. } = waiting;
        let core = self.core;
        core.metrics.waiting.sub(1);
        let by_token = request.routers.is_none() && core.model.locality() == Locality::Token;
        let shared = by_token && core.options.prefix_bytes > 0;
        let reads_all = request.prompt_logprobs || request.routing;
        let found = if shared && !reads_all {
            self.prefixes.find(&request.prompt, request.router_seed)
        } else {
            None
        };
        let begin = |session: Result<Session, Error>| {
            let mut session = session?;
            let known = session.position();
            let more = request.prompt.len() - known + request.max_tokens.saturating_sub(1);
            session.reserve(more.min(session.context() - known))?;
            let mut options = GenerateOptions::new(&core.model, request.max_tokens)
                .with_sampling(request.sampling.clone())
                .with_chunk(core.options.prompt_tokens);
            options.stop.clone_from(&request.stop_tokens);
            let mut generation = Generation::new(&core.model, session, &request.prompt[known..], &options)?;
            if let Some(routers) = &request.routers {
                generation = generation.with_routers(&core.model, routers.clone());
            }
            Ok(if request.prompt_logprobs { generation.with_prompt_logits() } else { generation })
        };
        let options = core.options.session.with_seed(request.router_seed);
        let new = || core.model.session(options);
        let mut begun = begin(found.map_or_else(new, Ok));
        if matches!(begun, Err(Error::OutOfMemory(_))) {
            // Who is here comes before who may come.
            self.prefixes.clear();
            begun = begin(new());
        }
        let generation = match begun {
            Ok(generation) => generation,
            Err(error) => return drop(events.try_send(Event::Failed(failure(error)))),
        };
        core.metrics.prefix_tokens.add(generation.session().position() as u64);
        core.metrics.requests.add(1);
        self.jobs.push(Job {
            shared,
            generation,
            decoder: Some(core.tokenizer.decoder_after(&request.prompt)),
            stops: Stops::new(&request.stop_texts),
            prompt: request.prompt,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            routing: request.routing,
            events,
            since,
            deadline: since + core.options.request_time,
            begun: false,
            over: false,
        });
    }

    /// Who shares the next pass, and who has one alone: every text that goes on, and prompts, the oldest first, up to the tokens of a
    /// pass.
    fn choose(&mut self) -> (Vec<usize>, Vec<usize>) {
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        let mut room = self.core.options.prompt_tokens;
        for (n, job) in self.jobs.iter_mut().enumerate().filter(|(_, job)| job.is_ready()) {
            if job.generation.is_alone() {
                alone.push(n);
                continue;
            }
            let reads_on = job.begun;
            let Some(step) = job.generation.step() else { continue };
            if !reads_on {
                if step.tokens.len() > room {
                    continue;
                }
                room -= step.tokens.len();
            }
            together.push(n);
        }
        (together, alone)
    }

    /// Runs a pass of a step of each of these jobs; without those that are at fault, where it can tell.
    fn pass(&mut self, mut chosen: Vec<usize>) {
        let Self { core, workspace, jobs, .. } = self;
        let (model, metrics, vocabulary) = (&core.model, &core.metrics, core.model.config().vocab_size);
        while !chosen.is_empty() {
            let (mut steps, mut parts, mut watch, mut tokens) = (Vec::new(), Vec::new(), Watch::default(), 0);
            let taking_part = jobs.iter_mut().enumerate().filter(|(n, _)| chosen.contains(n));
            for (n, job) in taking_part {
                let routing = job.routing;
                let Some(step) = job.generation.step() else { continue };
                let count = step.tokens.len();
                if routing {
                    watch.keep(parts.len(), tokens..tokens + count);
                }
                tokens += count;
                let rows = match step.wanted {
                    Wanted::None => 0,
                    Wanted::Last => 1,
                    Wanted::All => count,
                };
                parts.push((n, rows));
                steps.push(step);
            }
            chosen = parts.iter().map(|&(n, _)| n).collect();
            let outcome = model.forward(&mut steps, workspace, &mut watch);
            drop(steps);
            match outcome {
                Ok(logits) => {
                    metrics.pass(parts.len(), tokens, watch.touched);
                    for (part, routing) in watch.into_steps() {
                        jobs[parts[part].0].routed(routing);
                    }
                    let mut rest = logits.as_slice().unwrap_or_default();
                    for (n, rows) in parts {
                        let (own, others) = rest.split_at(rows * vocabulary);
                        rest = others;
                        jobs[n].take(own, vocabulary, metrics);
                    }
                    return;
                }
                Err(Error::Step { step, source }) if step < chosen.len() => {
                    jobs[chosen.remove(step)].fail(failure(*source));
                }
                Err(error) => {
                    let message = error.to_string();
                    let failure = || match &error {
                        Error::OutOfMemory(_) => Failure::Full("there is no memory for it"),
                        _ => Failure::Model(message.clone()),
                    };
                    chosen.drain(..).for_each(|n| jobs[n].fail(failure()));
                }
            }
        }
    }
}
