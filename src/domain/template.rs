//! Texts with `${name}` in them, from a closed list of names.

use serde::{Deserialize, Serialize};

/// A text in which `${name}` stands for something known at each start, and `$$` for a dollar sign.
///
/// Environment variables are never expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Template(String);

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Stands for itself.
    Text(&'a str),
    /// `${name}`.
    Name(&'a str),
}

/// Says why a text is not a template, or cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A dollar sign that starts neither `$$` nor `${`.
    #[error("a lone `$` at byte {at}: write `$$` for a dollar sign, or `${{name}}`")]
    LoneDollar {
        /// Where, counted in bytes from 0.
        at: usize,
    },
    /// `${` without `}`.
    #[error("`${{` at byte {at} is not closed")]
    Unclosed {
        /// Where, counted in bytes from 0.
        at: usize,
    },
    /// A name that nothing stands for.
    #[error("nothing is called `${{{name}}}` here")]
    UnknownName {
        /// The name.
        name: String,
        /// Where its dollar sign is, counted in bytes from 0.
        at: usize,
    },
}

impl TemplateError {
    /// Returns where the trouble starts, in bytes from 0.
    pub fn at(&self) -> usize {
        match self {
            Self::LoneDollar { at } | Self::Unclosed { at } | Self::UnknownName { at, .. } => *at,
        }
    }
}

impl Template {
    /// Makes a template of a text as it was written. What is wrong in it shows when it is read.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Makes a template that stands for exactly `text`.
    pub fn literal(text: &str) -> Self {
        Self(text.replace('$', "$$"))
    }

    /// Returns the text as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes the text apart; each piece comes with its place in bytes.
    pub fn pieces(&self) -> Result<Vec<(usize, Piece<'_>)>, TemplateError> {
        let text = self.0.as_str();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let Some(plain) = rest.find('$') else {
                pieces.push((at, Piece::Text(rest)));
                break;
            };
            if plain > 0 {
                pieces.push((at, Piece::Text(&rest[..plain])));
                at += plain;
            }
            let rest = &text[at + 1..];
            if rest.starts_with('$') {
                pieces.push((at, Piece::Text("$")));
                at += 2;
            } else if let Some(inner) = rest.strip_prefix('{') {
                let end = inner.find('}').ok_or(TemplateError::Unclosed { at })?;
                pieces.push((at, Piece::Name(&inner[..end])));
                at += end + 3;
            } else {
                return Err(TemplateError::LoneDollar { at });
            }
        }
        Ok(pieces)
    }

    /// Returns the text with each name replaced by what `lookup` says of it.
    pub fn expand(&self, lookup: impl Fn(&str) -> Option<String>) -> Result<String, TemplateError> {
        let mut text = String::with_capacity(self.0.len());
        for (at, piece) in self.pieces()? {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Name(name) => text.push_str(
                    &lookup(name)
                        .ok_or_else(|| TemplateError::UnknownName { name: name.to_owned(), at })?,
                ),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String, TemplateError> {
        Template::new(text).expand(|name| (name == "service").then(|| "web".to_owned()))
    }

    #[test]
    fn a_known_name_is_replaced_and_a_doubled_dollar_is_one() {
        assert_eq!(expand("/log/${service}/$$x$${service}").unwrap(), "/log/web/$x${service}");
    }

    #[test]
    fn what_is_not_a_name_of_the_list_is_refused_with_its_place() {
        assert_eq!(expand("ab$HOME"), Err(TemplateError::LoneDollar { at: 2 }));
        assert_eq!(expand("${service"), Err(TemplateError::Unclosed { at: 0 }));
        assert_eq!(
            expand("é${HOME}"),
            Err(TemplateError::UnknownName { name: "HOME".to_owned(), at: 2 })
        );
    }

    #[test]
    fn a_literal_stands_for_itself() {
        for text in ["", "$", "${service}", "a$$b", "ü$"] {
            assert_eq!(Template::literal(text).expand(|_| None).unwrap(), text);
        }
    }
}
