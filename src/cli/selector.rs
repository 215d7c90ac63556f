//! What people type to name instances: `service/instance@node`, the last two optional.

use std::fmt;
use std::str::FromStr;

use crate::domain::id::{InvalidToken, NodeId, ServiceId};
use crate::domain::text::printable;

/// Names some instances of one service. Every name that a screen prints is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Of which service.
    pub service: ServiceId,
    /// This slot, or all of them.
    pub index: Option<u16>,
    /// On this node, or on all of them.
    pub node: Option<NodeId>,
}

/// What a screen is asked about: some instances, or whatever is on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `service/instance@node`.
    Instances(Selector),
    /// `@node`.
    Node(NodeId),
}

impl FromStr for Scope {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let Some(node) = text.strip_prefix('@') else { return text.parse().map(Self::Instances) };
        let node = node.parse();
        node.map(Self::Node).map_err(|source| InvalidSelector::Node { text: shown(text), source })
    }
}

/// Says why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// The service is not a name.
    #[error("`{text}` does not begin with the name of a service")]
    Service {
        /// What was typed, made printable.
        text: String,
        /// What a name is.
        source: InvalidToken,
    },
    /// The part after `/` is not the number of a slot.
    #[error("`{text}` is not the number of an instance: they count from 0 to 65535")]
    Index {
        /// What stands after `/`, made printable.
        text: String,
    },
    /// The part after `@` is not a name.
    #[error("`{text}` does not end with the name of a node")]
    Node {
        /// What was typed, made printable.
        text: String,
        /// What a name is.
        source: InvalidToken,
    },
}

impl Selector {
    /// Names every instance of a service.
    pub fn service(service: ServiceId) -> Self {
        Self { service, index: None, node: None }
    }

    /// Says whether this instance is meant.
    pub fn matches(&self, service: &ServiceId, index: u16, node: &NodeId) -> bool {
        self.service == *service
            && self.index.is_none_or(|wanted| wanted == index)
            && self.may_be_on(node)
    }

    /// Says whether something on this node can be meant.
    pub fn may_be_on(&self, node: &NodeId) -> bool {
        self.node.as_ref().is_none_or(|wanted| wanted == node)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        self.index.map_or(Ok(()), |index| write!(f, "/{index}"))?;
        self.node.as_ref().map_or(Ok(()), |node| write!(f, "@{node}"))
    }
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let shown = || shown(text);
        let (instance, node) = match text.split_once('@') {
            Some((instance, node)) => (instance, Some(node)),
            None => (text, None),
        };
        let (service, index) = match instance.split_once('/') {
            Some((service, index)) => (service, Some(index)),
            None => (instance, None),
        };
        Ok(Self {
            service: service
                .parse()
                .map_err(|source| InvalidSelector::Service { text: shown(), source })?,
            index: index.map(parse_index).transpose()?,
            node: node
                .map(str::parse)
                .transpose()
                .map_err(|source| InvalidSelector::Node { text: shown(), source })?,
        })
    }
}

fn shown(text: &str) -> String {
    printable(&text.chars().take(200).collect::<String>()).into_owned()
}

/// Reads a number as we print it: no sign and no leading zero, so that one instance has one name.
fn parse_index(text: &str) -> Result<u16, InvalidSelector> {
    let index: Option<u16> = text.parse().ok();
    index
        .filter(|index| index.to_string() == text)
        .ok_or_else(|| InvalidSelector::Index { text: shown(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_reads_what_it_writes() {
        for text in ["web", "web/0", "web@n1", "web/65535@n1"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_selector_is_refused() {
        for text in
            ["", "/0", "@n1", "web/", "web@", "web/x", "web/+1", "web/01", "web/65536", "web/0/1"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        let error = "Web@n1".parse::<Selector>().unwrap_err();
        assert_eq!(error.to_string(), "`Web@n1` does not begin with the name of a service");
    }

    #[test]
    fn a_node_alone_is_all_that_is_on_it() {
        assert_eq!("@n2".parse(), Ok(Scope::Node("n2".parse().unwrap())));
        assert_eq!("web@n2".parse(), Ok(Scope::Instances("web@n2".parse().unwrap())));
        assert!("@".parse::<Scope>().is_err() && "@N2".parse::<Scope>().is_err());
    }

    #[test]
    fn parts_that_are_left_out_match_everything() {
        let matches = |selector: &str| {
            let selector: Selector = selector.parse().unwrap();
            selector.matches(&"web".parse().unwrap(), 1, &"n2".parse().unwrap())
        };
        assert!(["web", "web/1", "web@n2", "web/1@n2"].into_iter().all(matches));
        assert!(!["job", "web/0", "web@n1", "web/1@n1"].into_iter().any(matches));
    }
}
