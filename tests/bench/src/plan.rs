//! What one run measures.

use anyhow::{Result, bail};

use crate::parts::{self, Part};

/// One run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Empty: all parts but those on request.
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

    pub(crate) fn wants(&self, part: &Part) -> bool {
        let named = self.only.iter().any(|wanted| wanted == part.name);
        named || self.only.is_empty() && !part.on_request
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
        let wanted = |only: &str| {
            let plan = Plan::new(only).unwrap();
            parts::ALL.iter().filter(|part| plan.wants(part)).map(|part| part.name).collect::<Vec<_>>()
        };
        assert_eq!(wanted(""), ["boot", "memory", "idle", "relay", "bridge", "supervise", "images"]);
        assert_eq!(wanted("relay,boot"), ["boot", "relay"]);
        assert_eq!(wanted("units"), ["units"]);
        assert!(Plan::new("rely").unwrap_err().to_string().contains("ONLY=rely: no such part"));
    }
}
