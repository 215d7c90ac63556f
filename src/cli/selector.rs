//! `service/instance@node`: the one form in which things are named, printed and selected.

use std::fmt;
use std::str::FromStr;

use crate::domain::id::{InvalidToken, NodeId, ServiceId};

/// A selection. What is left out is not narrowed; nothing at all is no selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Which service.
    pub service: Option<ServiceId>,
    /// Which slot of it.
    pub index: Option<u16>,
    /// On which node.
    pub node: Option<NodeId>,
}

/// Says why a text selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// It names neither service nor node.
    #[error("a selector is written SERVICE, SERVICE/INSTANCE, SERVICE@NODE or @NODE")]
    Shape,
    /// The instance is not a number.
    #[error("`{0}` is not an instance: instances are numbered from 0")]
    Index(String),
    /// A name in it is not a name.
    #[error(transparent)]
    Name(#[from] InvalidToken),
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let (rest, node) = match text.split_once('@') {
            Some((rest, node)) => (rest, Some(node.parse()?)),
            None => (text, None),
        };
        let (service, index) = match rest.split_once('/') {
            Some((service, index)) => {
                let number = index.parse().map_err(|_| InvalidSelector::Index(index.to_owned()))?;
                (service, Some(number))
            }
            None => (rest, None),
        };
        match (service.is_empty(), index, node) {
            (false, index, node) => Ok(Self { service: Some(service.parse()?), index, node }),
            (true, None, Some(node)) => Ok(Self { service: None, index: None, node: Some(node) }),
            (true, ..) => Err(InvalidSelector::Shape),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.iter().try_for_each(|service| write!(f, "{service}"))?;
        self.index.iter().try_for_each(|index| write!(f, "/{index}"))?;
        self.node.iter().try_for_each(|node| write!(f, "@{node}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_reads_what_it_writes() {
        for text in ["web", "web/1", "web@n3", "web/1@n3", "@n3"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_text_that_selects_nothing_is_refused() {
        for text in
            ["", "@", "/0", "web/", "web/-1", "web/70000", "web@", "web@n1@n2", "We", "/0@n1"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
