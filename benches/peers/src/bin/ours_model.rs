//! Whole models of `mixtral-model`.
//!
//! `ours_model MODEL IDS PROMPT ACTIVATIONS`: IDS has token ids as little-endian 32-bit integers, of which the first PROMPT are a
//! prompt. Says `ready` and what it is, and then answers lines:
//!
//! | line | answer |
//! |---|---|
//! | `run all` or `run last` `TOKENS` | seconds that the prompt takes in one pass, all logits wanted or the last alone, and seconds that each of the next TOKENS takes after it |
//! | `logits PATH` | `ok`, the prompt's logits being written to PATH as raw little-endian f32 |
//! | `limits` | floating-point operations and bytes read a second |

use std::fs;
use std::path::Path;
use std::time::Instant;

use mixtral_model::{Access, Compute, Model, Session, SessionOptions, Source, Step, Wanted, Workspace};
use moe_kernels::{Activations, Backend};
use peers::{Limits, Result, arguments, serve_lines};

fn main() -> Result<()> {
    let (source, options) = arguments()?;
    let [ids, prompt, activations] = options.as_slice() else {
        return Err("ours_model MODEL IDS PROMPT ACTIVATIONS".into());
    };
    let compute = Compute { backend: Backend::best(), activations: activations.parse()? };
    let source = Source::find(&source)?;
    let model = Model::load(source.config()?, &source.checkpoint(Access::Map)?, compute)?;
    let session = model.session(SessionOptions::default())?;
    let ids = words(&fs::read(ids)?);
    let mut ours = Ours { model: &model, session, workspace: Workspace::new(), ids, prompt: prompt.parse()? };
    let limits = Limits::new(compute.backend, Activations::F32);
    let description = format!("mixtral-model {}, {}", env!("CARGO_PKG_VERSION"), compute.backend);
    serve_lines(&description, |words| match *words {
        ["run", wanted, tokens] => {
            let wanted = if wanted == "all" { Wanted::All } else { Wanted::Last };
            let (prompt, token) = ours.run(wanted, tokens.parse()?)?;
            Ok(format!("{prompt} {token}"))
        }
        ["logits", path] => ours.logits(Path::new(path)).map(|()| "ok".to_owned()),
        ["limits"] => {
            let (flops, bytes) = limits.measure();
            Ok(format!("{flops} {bytes}"))
        }
        _ => Err(format!("what is {words:?}?").into()),
    })
}

struct Ours<'m> {
    model: &'m Model,
    session: Session,
    workspace: Workspace,
    ids: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
}

impl Ours<'_> {
    fn run(&mut self, wanted: Wanted, tokens: usize) -> Result<(f64, f64)> {
        let (prompt, rest) = self.ids.split_at(self.prompt);
        self.session.clear();
        let begun = Instant::now();
        let step = Step::new(&mut self.session, prompt).wanted(wanted);
        self.model.forward(&mut [step], &mut self.workspace, &mut ())?;
        let of_prompt = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for token in rest[..tokens].chunks(1) {
            self.model.forward(&mut [Step::new(&mut self.session, token)], &mut self.workspace, &mut ())?;
        }
        Ok((of_prompt, begun.elapsed().as_secs_f64() / tokens.max(1) as f64))
    }

    fn logits(&mut self, path: &Path) -> Result<()> {
        self.session.clear();
        let step = Step::new(&mut self.session, &self.ids[..self.prompt]).wanted(Wanted::All);
        let logits = self.model.forward(&mut [step], &mut self.workspace, &mut ())?;
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        Ok(fs::write(path, bytes)?)
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}
