//! `POST /init`: the platform's first call after a boot or a resume. 204 when taken; any other answer fails the start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every field may be absent; what envd adds later is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InitRequest {
    /// Environment of every process that is started later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Token that later calls must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// RFC 3339; the guest's clock is set to it when it is far off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Who runs what names no user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
}

impl InitRequest {
    /// What the platform sends when nothing is configured: the clock and the user `user`.
    pub fn for_user(user: &str, timestamp: impl Into<String>) -> Self {
        Self { default_user: Some(user.to_owned()), timestamp: Some(timestamp.into()), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_request_is_spelt_as_it_spells_it() {
        let request = InitRequest::for_user("user", "2026-08-01T00:00:00Z");
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"timestamp":"2026-08-01T00:00:00Z","defaultUser":"user"}"#);
        assert_eq!(
            serde_json::from_str::<InitRequest>(r#"{"lifecycleID":"x"}"#).unwrap(),
            InitRequest::default()
        );
    }
}
