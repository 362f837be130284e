//! `filesystem.Filesystem`: calls about the tree.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use envd_api::error::Code;
use envd_api::filesystem::{
    EntryInfo, EntryResponse, FileType, ListDirRequest, ListDirResponse, MoveRequest, PathRequest,
};
use nix::unistd::{Gid, Group, Uid, User, chown};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Rpc;
use crate::users;

type Answer<T> = Result<Json<T>, Rpc>;

pub(crate) async fn stat(
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<PathRequest>,
) -> Answer<EntryResponse> {
    let path = users::resolve(&request.path, &app.user_of(&headers));
    Ok(Json(EntryResponse { entry: entry(&path)? }))
}

pub(crate) async fn list_dir(
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<ListDirRequest>,
) -> Answer<ListDirResponse> {
    let path = users::resolve(&request.path, &app.user_of(&headers));
    let mut entries = Vec::new();
    list(&path, request.depth.max(1), &mut entries)?;
    Ok(Json(ListDirResponse { entries }))
}

pub(crate) async fn make_dir(
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<PathRequest>,
) -> Answer<EntryResponse> {
    let user = app.user_of(&headers);
    let path = users::resolve(&request.path, &user);
    if path.exists() {
        return Err(Rpc::new(Code::AlreadyExists, format!("directory already exists: {}", path.display())));
    }
    fs::create_dir_all(&path).map_err(failed(&path))?;
    if let Ok(user) = users::find(&user) {
        let _ = chown(&path, Some(user.uid), Some(user.gid));
    }
    Ok(Json(EntryResponse { entry: entry(&path)? }))
}

pub(crate) async fn move_entry(
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<MoveRequest>,
) -> Answer<EntryResponse> {
    let user = app.user_of(&headers);
    let (from, to) = (users::resolve(&request.source, &user), users::resolve(&request.destination, &user));
    fs::rename(&from, &to).map_err(failed(&from))?;
    Ok(Json(EntryResponse { entry: entry(&to)? }))
}

/// What is not there is already removed, as the real one sees it.
pub(crate) async fn remove(
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<PathRequest>,
) -> Answer<Value> {
    let path = users::resolve(&request.path, &app.user_of(&headers));
    let removed = match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
        _ => Ok(Json(json!({}))),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Rpc {
    let path = path.display().to_string();
    move |error| Rpc::io(&path, &error)
}

fn list(path: &Path, depth: u32, entries: &mut Vec<EntryInfo>) -> Result<(), Rpc> {
    if !fs::metadata(path).map_err(failed(path))?.is_dir() {
        return Err(Rpc::new(Code::InvalidArgument, format!("path is not a directory: {}", path.display())));
    }
    let mut names: Vec<_> = fs::read_dir(path).map_err(failed(path))?.flatten().collect();
    names.sort_by_key(fs::DirEntry::file_name);
    for name in names {
        entries.push(entry(&name.path())?);
        if depth > 1 && name.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&name.path(), depth - 1, entries)?;
        }
    }
    Ok(())
}

fn entry(path: &Path) -> Result<EntryInfo, Rpc> {
    let meta = fs::symlink_metadata(path).map_err(failed(path))?;
    let is_symlink = meta.is_symlink();
    let target = if is_symlink { fs::read_link(path).ok() } else { None };
    let seen = if is_symlink { fs::metadata(path).unwrap_or_else(|_| meta.clone()) } else { meta.clone() };
    Ok(EntryInfo {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        kind: file_type(&seen),
        path: path.display().to_string(),
        size: meta.len() as i64,
        mode: meta.permissions().mode() & 0o7777,
        permissions: permissions(&meta),
        owner: owner(meta.uid()),
        group: group(meta.gid()),
        modified_time: modified(&meta),
        symlink_target: target.map(|path| path.display().to_string()),
        is_symlink,
        ..EntryInfo::default()
    })
}

fn file_type(meta: &Metadata) -> FileType {
    match meta.file_type() {
        kind if kind.is_file() => FileType::File,
        kind if kind.is_dir() => FileType::Directory,
        kind if kind.is_symlink() => FileType::Symlink,
        _ => FileType::Unspecified,
    }
}

/// As `ls -l` shows them.
fn permissions(meta: &Metadata) -> String {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'L',
        _ => '-',
    };
    let mode = meta.permissions().mode();
    let bits = "rwxrwxrwx".chars().enumerate();
    std::iter::once(kind)
        .chain(bits.map(|(bit, name)| if mode >> (8 - bit) & 1 == 1 { name } else { '-' }))
        .collect()
}

fn owner(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn group(gid: u32) -> String {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// RFC 3339, from days since the epoch by the civil calendar.
fn modified(meta: &Metadata) -> Option<String> {
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
        since.subsec_nanos()
    ))
}

/// Year, month and day of a day counted from 1970-01-01, for days after it: eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_665), (2026, 7, 31));
    }
}
