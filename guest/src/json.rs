//! Reading JSON by way of [`Value`], so that each type is compiled for one source only: the guest's program is to stay small.

use serde::de::DeserializeOwned;
use serde_json::{Error, Value};

pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_value(serde_json::from_slice::<Value>(bytes)?)
}
