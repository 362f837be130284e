//! What one run measures.

use anyhow::{Result, bail};

use crate::parts;

/// One run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Empty: all parts.
    only: Vec<String>,
}

impl Plan {
    /// `ONLY=relay,boot` picks parts.
    pub(crate) fn from_environment() -> Result<Self> {
        Self::new(&std::env::var("ONLY").unwrap_or_default())
    }

    fn new(only: &str) -> Result<Self> {
        let only: Vec<String> =
            only.split([',', ' ', '|']).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let known = || parts::ALL.iter().map(|part| part.name);
        if let Some(unknown) = only.iter().find(|part| !known().any(|name| name == *part)) {
            bail!("ONLY={unknown}: no such part; it is one of {}", known().collect::<Vec<_>>().join(", "));
        }
        Ok(Self { only })
    }

    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }

    /// Progress, on standard error.
    #[expect(clippy::unused_self, reason = "progress belongs to the run")]
    pub(crate) fn say(&self, what: &str) {
        eprintln!("bench: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_picked_and_a_misspelt_one_is_named() {
        assert!(Plan::new("").unwrap().wants("boot"));
        let some = Plan::new("relay,boot").unwrap();
        assert!(some.wants("relay") && some.wants("boot") && !some.wants("idle"));
        assert!(Plan::new("rely").unwrap_err().to_string().contains("ONLY=rely: no such part"));
    }
}
