//! OpenAI's protocol: what requests say, and how answers are written.

mod answer;
mod chat;
mod common;
mod completions;
mod fault;
mod fields;
mod merged;
mod spelling;
mod stream;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mixtral_model::ChatFormat;
use serde_json::{Value, json};

use crate::engine::{Core, Engine};
use answer::Answer;
use fault::Fault;

/// What all handlers share.
pub(crate) struct Api {
    engine: Arc<Engine>,
    chat: ChatFormat,
    /// Seconds since 1970 when the server began.
    begun: u64,
    answers: AtomicU64,
}

impl Api {
    pub(crate) fn new(engine: Arc<Engine>, chat: ChatFormat) -> Self {
        Self { engine, chat, begun: now(), answers: AtomicU64::new(0) }
    }

    fn core(&self) -> &Core {
        self.engine.core()
    }

    /// A name for an answer that no other has.
    fn id(&self, prefix: &str) -> String {
        format!("{prefix}-{}-{}", self.begun, self.answers.fetch_add(1, Ordering::Relaxed))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// All paths of the server.
pub(crate) fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(api.clone(), with_key))
        .with_state(api)
}

type Shared = State<Arc<Api>>;

/// Lets through who shows the key, where there is one; that the server lives may be asked by anybody.
async fn with_key(State(api): Shared, request: Request, next: Next) -> Response {
    if let Some(key) = &api.core().options.api_key
        && request.uri().path() != "/health"
    {
        let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let shown = shown.and_then(|value| value.split_at_checked(7));
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        if !shown.is_some_and(|(_, shown)| key.is(shown)) {
            let message = "expected the server's key, as `Authorization: Bearer KEY`";
            return Fault::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").into_response();
        }
    }
    next.run(request).await
}

async fn no_such_path() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "there is nothing at this path").code("not_found")
}

async fn no_such_method() -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "this path is asked in another way").code("method_not_allowed")
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn metrics(State(api): Shared) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], api.core().metrics.text()).into_response()
}

fn described(api: &Api) -> Value {
    let core = api.core();
    let context = core.options.session.context.unwrap_or(core.model.config().max_positions);
    json!({
        "id": core.options.model_name,
        "object": "model",
        "created": api.begun,
        "owned_by": "local",
        "max_model_len": context,
    })
}

async fn models(State(api): Shared) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&api)]}))
}

async fn model(State(api): Shared, request: Request) -> Result<Json<Value>, Fault> {
    let described = described(&api);
    match request.uri().path().strip_prefix("/v1/models/") {
        Some(name) if described["id"] == name => Ok(Json(described)),
        _ => Err(no_such_model()),
    }
}

fn no_such_model() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "there is no such model here; /v1/models names the one that there is")
        .of("model")
        .code("model_not_found")
}

/// The body of a request that says that it is JSON: a page of another site cannot send one without being allowed to.
async fn body(api: &Api, request: Request) -> Result<Vec<u8>, Fault> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = "expected the header `Content-Type: application/json`";
        return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let options = &api.core().options;
    let body = to_bytes(request.into_body(), options.body_bytes);
    match tokio::time::timeout(options.client_time, body).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(_)) => {
            let message = format!("expected a whole body of at most {} bytes", options.body_bytes);
            Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(_) => Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

/// Reads a request away from the threads that connections are on: a long text takes its time.
async fn read<T: Send + 'static>(
    api: &Arc<Api>,
    request: Request,
    read: impl FnOnce(&Arc<Api>, &[u8]) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let body = body(api, request).await?;
    let api = api.clone();
    let reading = tokio::task::spawn_blocking(move || read(&api, &body));
    reading.await.unwrap_or_else(|_| {
        Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the request ended by a panic"))
    })
}

async fn completions(State(api): Shared, request: Request) -> Result<Response, Fault> {
    let answer = read(&api, request, completions::read).await?;
    answered(&api, answer).await
}

async fn chat_completions(State(api): Shared, request: Request) -> Result<Response, Fault> {
    let answer = read(&api, request, chat::read).await?;
    answered(&api, answer).await
}

/// Has the engine work, and writes what comes of it: at once in the end, or as it comes.
async fn answered(api: &Api, mut answer: Answer) -> Result<Response, Fault> {
    let requests = std::mem::take(&mut answer.requests);
    let mut events = merged::Merged::new(api.engine.submit(requests)?);
    if answer.stream {
        // What is wrong is told by a status, as long as there is none.
        let first = events.next().await;
        let (choice, event) = first.ok_or_else(lost)?;
        let stream = stream::Chunks::new(answer, events, choice, event)?;
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return Ok((headers, Body::from_stream(stream)).into_response());
    }
    while let Some((choice, event)) = events.next().await {
        answer.take(choice, event)?;
    }
    if !answer.is_complete() {
        return Err(lost());
    }
    Ok(Json(answer.whole()).into_response())
}

fn lost() -> Fault {
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "the model gives no answer")
}

async fn tokenize(State(api): Shared, request: Request) -> Result<Json<Value>, Fault> {
    read(&api, request, tokens::tokenize).await.map(Json)
}

async fn detokenize(State(api): Shared, request: Request) -> Result<Json<Value>, Fault> {
    read(&api, request, tokens::detokenize).await.map(Json)
}

async fn tokenizer_info(State(api): Shared) -> Json<Value> {
    Json(tokens::info(&api))
}
