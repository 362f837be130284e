//! `/files`: the bytes of files.

use std::path::Path;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use envd_api::files::{FIELD, WriteInfo};
use nix::unistd::{User, chown};
use serde::Deserialize;

use crate::app::App;
use crate::error::Plain;
use crate::users;

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    #[serde(default)]
    path: String,
    username: Option<String>,
}

impl Target {
    fn user(&self, app: &App, headers: &HeaderMap) -> String {
        self.username.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| app.user_of(headers))
    }
}

pub(crate) async fn read(
    State(app): State<App>,
    Query(target): Query<Target>,
    headers: HeaderMap,
) -> Result<Response, Plain> {
    let path = users::resolve(&target.path, &target.user(&app, &headers));
    let failed = |error| Plain::io(&path.display().to_string(), &error);
    let bytes = tokio::fs::read(&path).await.map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// A form may carry several files, each under its own path; raw bytes go to the path of the query.
pub(crate) async fn write(
    State(app): State<App>,
    Query(target): Query<Target>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Vec<WriteInfo>>, Plain> {
    let name = target.user(&app, &headers);
    let user =
        users::find(&name).map_err(|error| Plain::new(StatusCode::UNAUTHORIZED, format!("{error:#}")))?;
    let bad = |error: String| Plain::new(StatusCode::BAD_REQUEST, error);
    let multipart = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/form-data"));
    if !multipart {
        let bytes = Bytes::from_request(request, &app).await.map_err(|error| bad(error.to_string()))?;
        return Ok(Json(vec![store(&target.path, &bytes, &user).await?]));
    }
    let mut form = Multipart::from_request(request, &app).await.map_err(|error| bad(error.to_string()))?;
    let mut written = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| bad(error.to_string()))? {
        if field.name() != Some(FIELD) {
            continue;
        }
        let path = if target.path.is_empty() {
            field.file_name().unwrap_or_default().to_owned()
        } else {
            target.path.clone()
        };
        let bytes = field.bytes().await.map_err(|error| bad(error.to_string()))?;
        written.push(store(&path, &bytes, &user).await?);
    }
    Ok(Json(written))
}

/// Writes the file as the user's own, with the folders above it.
async fn store(path: &str, bytes: &[u8], user: &User) -> Result<WriteInfo, Plain> {
    let path = users::resolve(path, &user.name);
    let failed = |error: std::io::Error| Plain::io(&path.display().to_string(), &error);
    let folder = path.parent().unwrap_or(Path::new("/"));
    for missing in missing_folders(folder) {
        tokio::fs::create_dir(&missing).await.map_err(failed)?;
        let _ = chown(missing, Some(user.uid), Some(user.gid));
    }
    let fresh = !path.exists();
    tokio::fs::write(&path, bytes).await.map_err(failed)?;
    if fresh {
        chown(&path, Some(user.uid), Some(user.gid)).map_err(|error| failed(error.into()))?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(WriteInfo { path: path.display().to_string(), name, kind: "file".to_owned() })
}

fn missing_folders(folder: &Path) -> Vec<&Path> {
    let mut missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    missing.reverse();
    missing
}
