//! Which nodes are meant: an expression over the labels that root signed into the roster.
//!
//! `env=prod,role=web`, `name=n1|n2`, `group=shop`, `!canary`, `zone!=eu-1`, `*` for every node. Terms are joined by
//! `,` and must all hold. Nothing here looks at what a node says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::id::NodeId;
use super::text::printable;

/// The labels of one node, by name.
pub type Labels = BTreeMap<String, String>;

/// The nodes of a fleet with their labels, as root signed them.
pub type Roster = BTreeMap<NodeId, Labels>;

/// The longest expression, in bytes: it travels in signed wishes and stands in one line of a screen.
pub const SELECTOR_BYTES_MAX: usize = 1024;

/// Names some nodes of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Empty for every node.
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    label: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Is(BTreeSet<String>),
    IsNot(BTreeSet<String>),
    Present,
    Absent,
}

/// Says why a text names no nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// Nothing stands there, and nothing must never mean everything.
    #[error("an empty selection: write `*` for every node")]
    Empty,
    /// It is longer than an expression may be.
    #[error("an expression has at most {SELECTOR_BYTES_MAX} bytes")]
    TooLong,
    /// A term is not one of the known forms.
    #[error("`{term}` is none of `label=a|b`, `label!=a|b`, `label`, `!label`, `*`")]
    Term {
        /// The term, made printable.
        term: String,
    },
    /// A name in it can be no node's.
    #[error("`{name}` is not the name of a node")]
    Name {
        /// The name, made printable.
        name: String,
    },
}

/// Says why a selection cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No node of the roster fits.
    #[error("no node matches `{selector}`")]
    NothingMatches {
        /// The whole expression.
        selector: String,
    },
    /// It names nodes that the roster does not have.
    #[error("no such node: {}", .0.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", "))]
    NoSuchNode(Vec<NodeId>),
}

impl Selector {
    /// Names these nodes.
    pub fn nodes<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Self {
        let names = nodes.into_iter().map(ToString::to_string).collect();
        Self { terms: vec![Term { label: "name".to_owned(), test: Test::Is(names) }] }
    }

    /// Names every node.
    pub fn every() -> Self {
        Self { terms: Vec::new() }
    }

    /// Says whether a node with these labels is meant. `name` is the node's own name, never a label.
    pub fn matches(&self, node: &NodeId, labels: &Labels) -> bool {
        self.terms.iter().all(|term| {
            let value = match term.label.as_str() {
                "name" => Some(node.as_str()),
                label => labels.get(label).map(String::as_str),
            };
            match &term.test {
                Test::Is(values) => value.is_some_and(|value| values.contains(value)),
                Test::IsNot(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Present => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }

    /// Returns the nodes that are meant, in the order of their names.
    ///
    /// # Errors
    ///
    /// No node fits, or one that is named does not exist: a name that was mistyped must not shrink a selection.
    pub fn select(&self, roster: &Roster) -> Result<BTreeSet<NodeId>, SelectError> {
        let missing: Vec<NodeId> = self.named().filter(|node| !roster.contains_key(node)).collect();
        if !missing.is_empty() {
            return Err(SelectError::NoSuchNode(missing));
        }
        let found: BTreeSet<NodeId> = roster
            .iter()
            .filter(|(node, labels)| self.matches(node, labels))
            .map(|(node, _)| node.clone())
            .collect();
        if found.is_empty() {
            return Err(SelectError::NothingMatches { selector: self.to_string() });
        }
        Ok(found)
    }

    /// Returns the nodes that `name=` lists.
    fn named(&self) -> impl Iterator<Item = NodeId> {
        let lists = self.terms.iter().filter(|term| term.label == "name");
        lists
            .filter_map(|term| match &term.test {
                Test::Is(names) => Some(names),
                Test::IsNot(_) | Test::Present | Test::Absent => None,
            })
            .flatten()
            .filter_map(|name| name.parse().ok())
    }
}

impl Term {
    fn read(text: &str) -> Result<Self, InvalidSelector> {
        let term = |label: &str, test| Ok(Self { label: label.to_owned(), test });
        let (label, values) = match text.split_once('=') {
            Some((label, values)) => (label.trim(), Some(values)),
            None => (text, None),
        };
        let shown = || printable(&text.chars().take(80).collect::<String>()).into_owned();
        let (label, is_not) = match (label.strip_prefix('!'), label.strip_suffix('!'), values) {
            (Some(label), _, None) => (label.trim(), true),
            (None, Some(label), Some(_)) => (label.trim(), true),
            (None, _, _) => (label, false),
            (Some(_), _, Some(_)) => return Err(InvalidSelector::Term { term: shown() }),
        };
        if !is_word(label) {
            return Err(InvalidSelector::Term { term: shown() });
        }
        let Some(values) = values else {
            return term(label, if is_not { Test::Absent } else { Test::Present });
        };
        let values: BTreeSet<String> = values.split('|').map(|v| v.trim().to_owned()).collect();
        if !values.iter().all(|value| is_word(value)) {
            return Err(InvalidSelector::Term { term: shown() });
        }
        if label == "name"
            && let Some(name) = values.iter().find(|name| name.parse::<NodeId>().is_err())
        {
            return Err(InvalidSelector::Name { name: name.clone() });
        }
        term(label, if is_not { Test::IsNot(values) } else { Test::Is(values) })
    }
}

/// Says whether a label or a value of one can be written so: 1 to 63 of `a-z A-Z 0-9 . _ / -`.
pub fn is_word(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(InvalidSelector::TooLong);
        }
        match text.trim() {
            "" => Err(InvalidSelector::Empty),
            "*" => Ok(Self::every()),
            text => {
                let terms = text.split(',').map(|term| Term::read(term.trim()));
                Ok(Self { terms: terms.collect::<Result<_, _>>()? })
            }
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("*");
        }
        for (at, term) in self.terms.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let label = &term.label;
            let list = |set: &BTreeSet<String>| {
                set.iter().map(String::as_str).collect::<Vec<_>>().join("|")
            };
            match &term.test {
                Test::Is(values) => write!(f, "{comma}{label}={}", list(values))?,
                Test::IsNot(values) => write!(f, "{comma}{label}!={}", list(values))?,
                Test::Present => write!(f, "{comma}{label}")?,
                Test::Absent => write!(f, "{comma}!{label}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn roster() -> Roster {
        let labels = |text: &str| {
            let pairs = text.split(',').map(|pair| pair.split_once('=').unwrap());
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        Roster::from([
            (node("n1"), labels("env=prod,role=web,group=shop,zone=a")),
            (node("n2"), labels("env=prod,role=web,group=shop,zone=b")),
            (node("n3"), labels("env=test,role=web,name=n1")),
            (node("n4"), labels("env=prod,role=db,old=yes")),
        ])
    }

    fn found(text: &str) -> Vec<String> {
        let found = text.parse::<Selector>().unwrap().select(&roster()).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_groups_and_labels_select_nodes() {
        assert_eq!(found("env=prod,role=web"), ["n1", "n2"]);
        assert_eq!(found("name=n4|n2"), ["n2", "n4"]);
        assert_eq!(found("group=shop,zone!=a"), ["n2"]);
        assert_eq!(found("!old, env = prod | test"), ["n1", "n2", "n3"]);
        assert_eq!(found("old"), ["n4"]);
        assert_eq!(found("*").len(), 4);
    }

    #[test]
    fn a_nodes_name_is_never_taken_from_a_label() {
        assert_eq!(found("name=n1"), ["n1"]);
    }

    #[test]
    fn an_empty_selection_is_an_error() {
        assert_eq!("".parse::<Selector>(), Err(InvalidSelector::Empty));
        assert_eq!("  ".parse::<Selector>(), Err(InvalidSelector::Empty));
        let none = "env=stage".parse::<Selector>().unwrap().select(&roster());
        assert!(matches!(none, Err(SelectError::NothingMatches { .. })), "{none:?}");
    }

    #[test]
    fn a_mistyped_name_does_not_shrink_a_selection() {
        let some = "name=n1|n9".parse::<Selector>().unwrap().select(&roster());
        assert_eq!(some, Err(SelectError::NoSuchNode(vec![node("n9")])));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for text in
            ["=", "a=", "a=b|", ",", "a,,b", "!a=b", "!", "a=b=c", "a b", "name=N1", "a=\u{7}"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
        assert_eq!("a".repeat(2000).parse::<Selector>(), Err(InvalidSelector::TooLong));
    }

    #[test]
    fn an_expression_reads_what_it_writes() {
        for text in ["*", "a=b|c,!d,e,f!=g", "name=n1|n2"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }
}
