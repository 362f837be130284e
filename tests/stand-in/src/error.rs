//! Answers that say what went wrong, as envd words them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use envd_api::error::{Code, ConnectError};
use envd_api::files::HttpError;

/// A failed Connect call.
#[derive(Debug)]
pub(crate) struct Rpc(pub(crate) ConnectError);

impl Rpc {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(ConnectError::new(code, message))
    }

    /// What became of a system call on `path`.
    pub(crate) fn io(path: &str, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::AlreadyExists => Code::AlreadyExists,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self::new(code, format!("{path}: {error}"))
    }
}

impl IntoResponse for Rpc {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// A failed plain HTTP call.
#[derive(Debug)]
pub(crate) struct Plain(HttpError);

impl Plain {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self(HttpError { code: status.as_u16(), message: message.into() })
    }

    pub(crate) fn io(path: &str, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                Self::new(StatusCode::NOT_FOUND, format!("path '{path}' does not exist"))
            }
            std::io::ErrorKind::IsADirectory => {
                Self::new(StatusCode::BAD_REQUEST, format!("path '{path}' is a directory"))
            }
            std::io::ErrorKind::StorageFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, format!("no space for '{path}'"))
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{path}: {error}")),
        }
    }
}

impl IntoResponse for Plain {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}
