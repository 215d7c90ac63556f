//! The alerts of a service as they are looked for in its lines.

use regex::bytes::{Regex, RegexSet};

use super::setup::LogSetupError;
use super::{Stream, setup};
use crate::config;
use crate::domain::id::AlertName;
use crate::domain::spec::{Alert, AlertStream};

/// Rules that are looked for in one pass over a line, however many they are.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    patterns: RegexSet,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    name: AlertName,
    stream: AlertStream,
    exclude: Option<Regex>,
}

impl Rules {
    pub(super) fn new<'a>(
        alerts: impl Iterator<Item = (&'a AlertName, &'a Alert)> + Clone,
    ) -> Result<Self, LogSetupError> {
        let patterns = alerts.clone().map(|(_, alert)| alert.r#match.as_str());
        let patterns = config::alert_set(patterns).map_err(|source| LogSetupError::Pattern {
            pattern: "alert.*.match".to_owned(),
            source,
        })?;
        let rules = alerts.map(|(name, alert)| {
            let exclude = alert.exclude.as_deref().map(setup::compile).transpose()?;
            Ok(Rule { name: name.clone(), stream: alert.stream, exclude })
        });
        Ok(Self { patterns, rules: rules.collect::<Result<_, _>>()? })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &AlertName> {
        self.rules.iter().map(|rule| &rule.name)
    }

    /// Returns the numbers of the rules that a line is for.
    pub(super) fn matching(&self, stream: Stream, line: &[u8]) -> Vec<usize> {
        // Most lines are for none, and that is said without making a set.
        if !self.patterns.is_match(line) {
            return Vec::new();
        }
        let is_meant = |at: &usize| {
            let rule = &self.rules[*at];
            let is_ours = match rule.stream {
                AlertStream::Any => true,
                AlertStream::Stdout => stream == Stream::Stdout,
                AlertStream::Stderr => stream == Stream::Stderr,
            };
            is_ours && !rule.exclude.as_ref().is_some_and(|exclude| exclude.is_match(line))
        };
        self.patterns.matches(line).into_iter().filter(is_meant).collect()
    }
}
