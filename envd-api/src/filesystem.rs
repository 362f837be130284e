//! `filesystem.Filesystem`: unary calls about the tree. The bytes of files go over `/files`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::int64;

pub const LIST_DIR: &str = "/filesystem.Filesystem/ListDir";
pub const STAT: &str = "/filesystem.Filesystem/Stat";
pub const MAKE_DIR: &str = "/filesystem.Filesystem/MakeDir";
pub const MOVE: &str = "/filesystem.Filesystem/Move";
pub const REMOVE: &str = "/filesystem.Filesystem/Remove";

/// Request of `Stat`, `MakeDir` and `Remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathRequest {
    pub path: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListDirRequest {
    pub path: String,
    /// How many levels; 0 means one.
    pub depth: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListDirResponse {
    pub entries: Vec<EntryInfo>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MoveRequest {
    pub source: String,
    pub destination: String,
}

/// Response of `Stat`, `MakeDir` and `Move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryResponse {
    pub entry: EntryInfo,
}

/// A file, directory or link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryInfo {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FileType,
    pub path: String,
    #[serde(with = "int64")]
    pub size: i64,
    /// Permission bits.
    pub mode: u32,
    /// The same as `ls` shows them.
    pub permissions: String,
    pub owner: String,
    pub group: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    pub is_symlink: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileType {
    #[default]
    #[serde(rename = "FILE_TYPE_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "FILE_TYPE_FILE")]
    File,
    #[serde(rename = "FILE_TYPE_DIRECTORY")]
    Directory,
    #[serde(rename = "FILE_TYPE_SYMLINK")]
    Symlink,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_strings_as_protobuf_writes_them_and_numbers_are_taken_too() {
        let entry: EntryInfo =
            serde_json::from_str(r#"{"size":"5000000000","type":"FILE_TYPE_FILE"}"#).unwrap();
        assert_eq!((entry.size, entry.kind), (5_000_000_000, FileType::File));
        let entry: EntryInfo = serde_json::from_str(r#"{"size":3}"#).unwrap();
        assert_eq!(entry.size, 3);
        assert!(serde_json::to_string(&entry).unwrap().contains(r#""size":"3""#));
    }
}
