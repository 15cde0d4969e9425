//! `mixtral serve`, from its first line to its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::{mixtral, run};

/// Enough for a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the command, however the test does.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn get(address: &str, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[cfg(unix)]
#[test]
fn it_says_where_it_listens_and_ends_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "secret\n").unwrap();
    for signal in ["-TERM", "-INT"] {
        let mut command = mixtral("serve --port 0 --api-key-file {}", &[key.to_str().unwrap()]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut server = Server(child);
        let mut line = String::new();
        BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://").unwrap();
        assert!(address.starts_with("127.0.0.1:"));
        assert!(get(address, "/health", "").starts_with("HTTP/1.1 200"));
        assert!(get(address, "/v1/models", "").starts_with("HTTP/1.1 401"));
        let models = get(address, "/v1/models", "Authorization: Bearer secret\r\n");
        assert!(models.starts_with("HTTP/1.1 200") && models.contains("\"id\":\"demo\""), "{models}");
        let id = server.0.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_eq!(server.0.wait().unwrap().code(), Some(0));
        let mut told = String::new();
        server.0.stderr.as_mut().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(told, "");
    }
}

#[test]
fn what_cannot_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "\n").unwrap();
    let said = run("serve --port 0 --api-key-file {}", &[key.to_str().unwrap()]);
    assert_eq!(said.status, Some(1));
    assert!(said.err.contains("expected a key of printable ASCII without spaces"), "{}", said.err);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = run("serve --port {}", &[&port]);
    assert_eq!(said.status, Some(1));
    assert!(said.err.starts_with(&format!("error: 127.0.0.1:{port}: ")), "{}", said.err);
}
