//! Parameters of actions: what was given, against what the spec declares.

use std::collections::BTreeMap;

use crate::domain::code::Code;
use crate::domain::spec::{Action, Param};
use crate::domain::text::printable;

/// The longest value of a parameter.
const VALUE_BYTES_MAX: usize = 4096;

/// Says why the parameters of an action do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// The action has no parameter of this name.
    #[error("`{name}` is not a parameter of this action{known}")]
    Unknown {
        /// The name, printable.
        name: String,
        /// What there is, or nothing.
        known: String,
    },
    /// It has no default and was not given.
    #[error("the parameter `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// Its value does not fit.
    #[error("`{name}` {why}")]
    Bad {
        /// Its name.
        name: String,
        /// What is wrong, without the value.
        why: String,
    },
}

impl ParamError {
    /// Returns its code.
    pub fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } | Self::Bad { .. } => Code::BAD_PARAMETER,
            Self::Missing { .. } => Code::MISSING_PARAMETER,
        }
    }
}

/// Returns a value for every parameter of `action`: as `given`, else its default.
pub fn bind(
    action: &Action,
    given: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ParamError> {
    if let Some(name) = given.keys().find(|name| !action.params.contains_key(*name)) {
        let names: Vec<&str> = action.params.keys().map(String::as_str).collect();
        let known = match names.as_slice() {
            [] => "; it takes none".to_owned(),
            names => format!("; it takes {}", names.join(", ")),
        };
        let name = printable(name).chars().take(80).collect();
        return Err(ParamError::Unknown { name, known });
    }
    let mut values = BTreeMap::new();
    for (name, param) in &action.params {
        let value = match given.get(name) {
            Some(value) => value.clone(),
            None => {
                default_text(param).ok_or_else(|| ParamError::Missing { name: name.clone() })?
            }
        };
        check(param, &value).map_err(|why| ParamError::Bad { name: name.clone(), why })?;
        values.insert(name.clone(), value);
    }
    Ok(values)
}

/// Returns the default as the text that reaches argv.
pub(super) fn default_text(param: &Param) -> Option<String> {
    match param {
        Param::String { default, .. } => default.clone(),
        Param::Integer { default, .. } => default.map(|number| number.to_string()),
        Param::Bool { default } => default.map(|flag| flag.to_string()),
    }
}

/// Says what is wrong with a value.
pub(super) fn check(param: &Param, value: &str) -> Result<(), String> {
    if value.contains('\0') || value.len() > VALUE_BYTES_MAX {
        return Err(format!("is a text without NUL of at most {VALUE_BYTES_MAX} bytes"));
    }
    match param {
        Param::String { pattern: None, .. } => Ok(()),
        Param::String { pattern: Some(pattern), .. } => {
            // The whole text has to match, whatever anchors the pattern has.
            let whole = regex::Regex::new(&format!("^(?:{pattern})\\z"));
            match whole.is_ok_and(|whole| whole.is_match(value)) {
                true => Ok(()),
                false => Err(format!("does not match {}", printable(pattern))),
            }
        }
        Param::Integer { min, max, .. } => {
            let number: i64 = value.parse().map_err(|_| "is not a whole number".to_owned())?;
            if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
                let [min, max] = [min, max].map(|n| n.map_or("any".to_owned(), |n| n.to_string()));
                return Err(format!("is out of range: {min} to {max}"));
            }
            Ok(())
        }
        Param::Bool { .. } => match value {
            "true" | "false" => Ok(()),
            _ => Err("is neither true nor false".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action() -> Action {
        let mut action = Action::new(Vec::new());
        let zone =
            Param::String { pattern: Some("[a-z]+".to_owned()), default: Some("all".to_owned()) };
        action.params.insert("zone".to_owned(), zone);
        let count = Param::Integer { min: Some(1), max: Some(9), default: None };
        action.params.insert("count".to_owned(), count);
        action
    }

    fn given(pairs: &[(&str, &str)]) -> Result<BTreeMap<String, String>, ParamError> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        bind(&action(), &pairs.collect())
    }

    #[test]
    fn what_is_not_given_is_its_default_and_what_has_none_is_missing() {
        assert_eq!(given(&[("count", "3")]).unwrap()["zone"], "all");
        assert_eq!(given(&[]).unwrap_err().code(), Code::MISSING_PARAMETER);
    }

    #[test]
    fn a_value_has_to_fit_as_a_whole() {
        for (name, value) in [("zone", "img; rm"), ("zone", ""), ("zone", "a\n"), ("zone", "a\0")] {
            assert!(given(&[("count", "3"), (name, value)]).is_err(), "{value:?}");
        }
        for value in ["0", "10", "", "1.5", "x"] {
            assert!(given(&[("count", value)]).is_err(), "{value:?}");
        }
        assert!(given(&[("count", "3"), ("zone", "img")]).is_ok());
    }

    #[test]
    fn a_parameter_that_was_not_declared_is_refused() {
        let error = given(&[("count", "3"), ("zome", "a")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`zome` is not a parameter of this action; it takes count, zone"
        );
    }
}
