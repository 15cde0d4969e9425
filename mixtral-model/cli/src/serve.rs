//! `mixtral serve`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use mixtral_server::{ApiKey, Server, ServerOptions};

use crate::args::Serve;
use crate::failure::{Failure, Result, warn};
use crate::input;
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::harmless;

/// How often a wish for an end is looked for.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &Serve, interrupt: &Interrupt) -> Result<()> {
    let source = args.running.model.source()?;
    let wishes = source.generation()?.read()?;
    wishes.warnings.iter().for_each(|warning| warn(&harmless(warning)));
    let options = options(args, wishes.sampling)?;
    let model = args.running.load_with(&source, &args.router, |_| Passes {
        sessions: options.sessions,
        tokens: options.prompt_tokens.max(options.whole_prompt) + options.sessions,
        // Of prompts whose probabilities are wanted, all.
        logits: options.prompt_tokens + options.sessions,
        besides: options.prefix_bytes as u64,
        context: None,
        any_router: true,
    })?;
    let tokenizer = load::tokenizer(&source, &model)?;
    let format = load::chat_format(&source, args.format.chat_format.as_ref(), &tokenizer)?;
    let server = Server::new(model, tokenizer, format, options)?;
    let address = server.address();
    if !address.ip().is_loopback() && args.api_key_file.is_none() {
        warn(&format!("{address} is reached from elsewhere, and no --api-key-file is asked for"));
    }
    let stopper = server.stopper();
    let wish = interrupt.clone();
    interrupt.during(|| {
        // Before it can be asked for anything, so that whoever waits for this line finds a server that is there.
        let mut out = std::io::stdout();
        writeln!(out, "listening on http://{address}").and_then(|()| out.flush())?;
        // It lasts as long as the process, which ends soon after the server.
        let look = move || {
            while !wish.wished() {
                std::thread::sleep(LOOK);
            }
            stopper.stop();
        };
        std::thread::Builder::new().name("end".to_owned()).spawn(look).map_err(Failure::Signals)?;
        Ok(server.run()?)
    })
}

fn options(args: &Serve, sampling: mixtral_model::Sampling) -> Result<ServerOptions> {
    let mut options = ServerOptions::default();
    options.address = SocketAddr::new(args.host, args.port);
    options.model_name = args.model_name.clone().unwrap_or_else(|| {
        let name = args.running.model.model.as_deref().and_then(|model| model.file_name());
        name.map_or_else(|| "demo".to_owned(), |name| name.to_string_lossy().into_owned())
    });
    if let Some(path) = &args.api_key_file {
        let name = path.display();
        let key = ApiKey::new(&input::file(path)?);
        let wrong = || Failure::not_as_expected(name, "expected a key of printable ASCII without spaces");
        options.api_key = Some(key.ok_or_else(wrong)?);
    }
    options.sessions = args.sessions.get();
    options.queue = args.queue.get();
    options.prompt_tokens = args.prompt_tokens.get();
    options.prefix_bytes = usize::try_from(args.prefix_cache).unwrap_or(usize::MAX);
    options.session = args.running.session_options();
    options.routers_draw = args.router.router.is_some();
    if sampling.temperature > 0.0 {
        options.sampling = sampling;
    }
    Ok(options)
}
