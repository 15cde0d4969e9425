//! A server for a test, and a client of nothing but bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use mixtral_model::{
    Access, ChatFormat, Compute, Embedded, GenerateOptions, Generation, Model, Sampling, SessionOptions,
    Source, Tokenizer, Workspace,
};
use mixtral_server::{Server, ServerOptions, Stopper};
use serde_json::Value;

/// Enough for a machine that has much else to do: whatever takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The demo, which lies in the command line's package.
pub(crate) fn demo() -> (Model, Tokenizer, ChatFormat) {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo").join(name);
        &*std::fs::read(path).unwrap().leak()
    };
    let source = Source::embedded(Embedded {
        name: "demo",
        config: read("config.json"),
        generation_config: read("generation_config.json"),
        weights: read("model.safetensors"),
        tokenizer: read("tokenizer.model"),
    });
    let checkpoint = source.checkpoint(Access::Map).unwrap();
    let model = Model::load(source.config().unwrap(), &checkpoint, Compute::default()).unwrap();
    let tokenizer = source.tokenizer().unwrap().for_model(model.config().vocab_size).unwrap();
    let chat = ChatFormat::choose(&source.chat_evidence().unwrap(), &tokenizer).unwrap();
    (model, tokenizer, chat)
}

/// A server that ends with the test.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) stopper: Stopper,
    thread: Option<JoinHandle<mixtral_server::Result<()>>>,
}

impl Running {
    pub(crate) fn start(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = ServerOptions::default();
        options.address.set_port(0);
        options.grace = Duration::from_millis(200);
        change(&mut options);
        let (model, tokenizer, chat) = demo();
        let server = Server::new(model, tokenizer, chat, options).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        Self { address, stopper, thread: Some(std::thread::spawn(|| server.run())) }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes, and gives the status and the body of what comes until the connection ends.
    pub(crate) fn raw(&self, bytes: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = self.connect();
        // The server may have answered and gone before it has read everything.
        let _ = stream.write_all(bytes);
        answer(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let (status, body) =
            self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
        (status, String::from_utf8(body).unwrap())
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.raw(&[head(path, body.len(), "").as_bytes(), body].concat())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.post_bytes(path, body.to_string().as_bytes());
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// The same where it must go well.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of an answer that comes in chunks, without the closing one.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, body) = self.post_bytes(path, body.to_string().as_bytes());
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<_> =
            text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// Ends it, and waits until it has.
    pub(crate) fn end(mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

/// The head of a request with a JSON body.
pub(crate) fn head(path: &str, length: usize, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

/// The status and the body of an answer.
pub(crate) fn answer(stream: &mut TcpStream) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // What was sent and not read resets the connection, after the answer.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "no end of the answer");
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else { return (0, bytes) };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = &bytes[end + 4..];
    (status, if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() })
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(line) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
        all.extend(&body[line + 2..line + 2 + size]);
        body = &body[line + 4 + size..];
    }
    all
}

/// What the library makes of a prompt alone: ids without the one that ends them.
pub(crate) fn alone(model: &Model, prompt: &[u32], max_tokens: usize, sampling: Sampling) -> Vec<u32> {
    let session = model.session(SessionOptions::default()).unwrap();
    let options = GenerateOptions::new(model, max_tokens).with_sampling(sampling);
    let mut generation = Generation::new(model, session, prompt, &options).unwrap();
    let mut workspace = Workspace::new();
    while let Some(step) = generation.step() {
        let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
        generation.take(logits.as_slice().unwrap()).unwrap();
    }
    generation.into_parts().1
}

/// The text that ids add to a prompt.
pub(crate) fn text_after(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut decoder = tokenizer.decoder_after(prompt);
    let text: String = ids.iter().map(|&id| decoder.push(id)).collect();
    text + &decoder.finish()
}
