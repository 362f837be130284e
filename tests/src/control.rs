//! The control protocol on vsock port 49984, spoken as its documentation says: a big-endian length and that much JSON.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::vm::Vm;
use crate::wait;

const PORT: u32 = 49984;
/// No answer is larger.
const LARGEST: u32 = 1 << 20;

impl Vm {
    /// One request by its `op` and its other fields: the answer.
    pub fn control(&self, op: &str, fields: &Value) -> Result<Value> {
        let mut request = json!({ "version": 1, "op": op });
        let all = request.as_object_mut().into_iter();
        all.for_each(|all| all.extend(fields.as_object().cloned().unwrap_or_default()));
        let mut stream = self.vsock(PORT)?;
        stream.set_read_timeout(Some(wait::BOUND))?;
        let body = request.to_string();
        stream.write_all(&(body.len() as u32).to_be_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).with_context(|| format!("waiting for the answer to {op}"))?;
        let length = u32::from_be_bytes(length);
        if length > LARGEST {
            bail!("the answer to {op} claims {length} bytes");
        }
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// PID 1's state; works without network and envd.
    pub fn status(&self) -> Result<Value> {
        self.control("status", &json!({}))
    }

    /// Waits until PID 1 answers at all.
    pub fn wait_control(&self) -> Result<Value> {
        wait::until("PID 1 to answer over vsock", wait::BOUND, || Ok(self.status().ok()))
    }

    /// An order about a service that must be carried out.
    pub fn order(&self, op: &str, service: &str) -> Result<()> {
        let answer = self.control(op, &json!({ "service": service }))?;
        if answer["reply"] != "done" {
            bail!("{op} {service} was answered {answer}");
        }
        Ok(())
    }

    /// Asks the machine to go down: `reboot`, `poweroff` or `halt`.
    pub fn shut_down(&self, kind: &str) -> Result<()> {
        let answer = self.control("shutdown", &json!({ "kind": kind }))?;
        if answer["reply"] != "done" {
            bail!("{kind} was answered {answer}");
        }
        Ok(())
    }
}
