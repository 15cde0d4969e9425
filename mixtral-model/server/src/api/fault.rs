//! What is wrong with a request, as OpenAI's clients read it.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::Failure;

/// What is wrong with a request: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug)]
pub(crate) struct Fault {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

/// Characters of a message: what clients send is quoted in it.
const MESSAGE: usize = 500;

impl Fault {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE) {
            message.truncate(end);
            message.push('…');
        }
        Self { status, message, param: None, code: None }
    }

    /// A request that is not as it must be.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field that is not as it must be.
    pub(crate) fn field(name: &str, message: impl AsRef<str>) -> Self {
        Self::bad(format!("{name}: {}", message.as_ref())).of(name)
    }

    /// The same, of a field.
    pub(crate) fn of(self, name: &str) -> Self {
        Self { param: Some(name.chars().take(100).collect()), ..self }
    }

    /// The same, with a code.
    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Full(what) => Self::new(StatusCode::TOO_MANY_REQUESTS, what).code("rate_limit_exceeded"),
            Failure::Late => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long").code("timeout")
            }
            Failure::Ending => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server ends"),
            Failure::Refused(error) => Self::bad(error.to_string()),
            Failure::Model(message) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let extra = match self.status {
            StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::TOO_MANY_REQUESTS => (header::RETRY_AFTER, "1"),
            // What is left of its body is not read.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => (header::CONNECTION, "close"),
            _ => return response,
        };
        response.headers_mut().insert(extra.0, HeaderValue::from_static(extra.1));
        response
    }
}
