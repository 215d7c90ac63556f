//! From one TOML value to what its key takes.

use std::ops::Range;

use toml_edit::{Array, Value};

use super::shell::{as_list, quoted};
use crate::config::keys::{Choice, Kind, Status};
use crate::config::pattern::PATTERN_BYTES_MAX;
use crate::config::quantity;
use crate::domain::code::Code;
use crate::domain::id::{ServiceId, map_to_token};
use crate::domain::signal::Signal;
use crate::domain::template::{Piece, Template, TemplateError};
use crate::domain::text::printable;

/// The longest text: what Linux takes as one argument or variable (128 KiB, NUL included).
const TEXT_BYTES_MAX: usize = (128 << 10) - 1;

/// The longest list.
const LIST_MAX: usize = 1000;

/// A value of the kind that its key takes.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::config) enum Typed {
    /// The head of a block.
    Block,
    /// A value that was refused; its mistake was told.
    Refused,
    Text(String),
    Texts(Vec<String>),
    Bool(bool),
    Integer(i64),
    Thousandths(u32),
    Millis(u64),
    Bytes(u64),
    Percent(u8),
    Rate(u32),
    Mode(u16),
    Codes(Vec<u8>),
}

/// What is wrong with a value.
pub(super) struct Wrong {
    pub(super) code: Code,
    pub(super) what: String,
    pub(super) hint: Option<String>,
    /// Where, when it is not the whole value.
    pub(super) span: Option<Range<usize>>,
}

/// The names that `${name}` may use.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) known: &'static [&'static str],
    /// Whether there are others, which are checked later.
    pub(super) open: bool,
}

fn wrong(code: Code, what: impl Into<String>, hint: impl Into<String>) -> Wrong {
    Wrong { code, what: what.into(), hint: Some(hint.into()), span: None }
}

/// Reads the value of `key`, which takes `kind`.
pub(super) fn typed(kind: Kind, key: &str, value: &Value, names: Names) -> Result<Typed, Wrong> {
    match kind {
        Kind::Version => match value.as_integer() {
            Some(1) => Ok(Typed::Integer(1)),
            Some(_) => {
                let hint = "a newer smgr may read it";
                Err(wrong(Code::SPEC_VERSION, "this version reads spec = 1", hint))
            }
            None => Err(mismatch(kind, key, value)),
        },
        Kind::Text | Kind::Other(_) => text(kind, key, value).map(|t| Typed::Text(t.to_owned())),
        Kind::Template | Kind::Path => {
            let text = text(kind, key, value)?;
            if matches!(kind, Kind::Path) && text.is_empty() {
                return Err(wrong(Code::EMPTY_VALUE, "an empty path", "write a path"));
            }
            template(text, names)?;
            Ok(Typed::Text(text.to_owned()))
        }
        Kind::Paths => texts(kind, key, value, |path| {
            if path.is_empty() {
                return Err(wrong(Code::EMPTY_VALUE, "an empty path", "write a path"));
            }
            template(path, names)
        }),
        Kind::Argv => argv(key, value, names),
        Kind::Texts => texts(kind, key, value, |_| Ok(())),
        Kind::Name => {
            let text = text(kind, key, value)?;
            name(text)?;
            Ok(Typed::Text(text.to_owned()))
        }
        Kind::Names => texts(kind, key, value, account_part),
        Kind::Bool => value.as_bool().map(Typed::Bool).ok_or_else(|| mismatch(kind, key, value)),
        Kind::Integer(min, max) => {
            let number = value.as_integer().ok_or_else(|| mismatch(kind, key, value))?;
            if (min..=max).contains(&number) {
                Ok(Typed::Integer(number))
            } else {
                Err(out_of_range(kind, key, &number.to_string()))
            }
        }
        Kind::Number(min, max) => {
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
            let number = number.ok_or_else(|| mismatch(kind, key, value))?;
            let thousandths = (number * 1000.0).round();
            if thousandths >= f64::from(min) && thousandths <= f64::from(max) {
                // In range, so the cast is exact.
                Ok(Typed::Thousandths(thousandths as u32))
            } else {
                Err(out_of_range(kind, key, &number.to_string()))
            }
        }
        Kind::Duration => quantity(Code::BAD_DURATION, key, value, quantity::duration, "s", "ms")
            .map(Typed::Millis),
        Kind::Size => {
            quantity(Code::BAD_SIZE, key, value, quantity::size, "MiB", "MB").map(Typed::Bytes)
        }
        Kind::Percent => {
            quantity(Code::BAD_PERCENT, key, value, quantity::percent, "%", "%").map(Typed::Percent)
        }
        Kind::Amount => amount(kind, key, value).map(Typed::Text),
        Kind::Amounts => match value.as_array() {
            None => amount(kind, key, value).map(|one| Typed::Texts(vec![one])),
            Some(_) => {
                let element = |value: &Value| {
                    let at = |wrong: Wrong| Wrong { span: value.span(), ..wrong };
                    amount(kind, key, value).map_err(at)
                };
                let all = list(kind, key, value)?.iter().map(element);
                all.collect::<Result<_, _>>().map(Typed::Texts)
            }
        },
        Kind::Figure => match value.as_float().or(value.as_integer().map(|n| n as f64)) {
            Some(number) if number.is_finite() => Ok(Typed::Text(number.to_string())),
            _ => Err(mismatch(kind, key, value)),
        },
        Kind::Rate => {
            quantity(Code::BAD_RATE, key, value, quantity::rate, "/s", "/s").map(Typed::Rate)
        }
        Kind::Mode => quantity(Code::BAD_MODE, key, value, quantity::mode, "", "").map(Typed::Mode),
        Kind::Choice(choices) => choice(kind, key, value, choices),
        Kind::Regex => {
            let text = text(kind, key, value)?;
            regex(text)?;
            Ok(Typed::Text(text.to_owned()))
        }
        Kind::Regexes => texts(kind, key, value, regex),
        Kind::ExitCodes => exit_codes(kind, key, value),
        Kind::Signal => {
            let text = text(kind, key, value)?;
            let signal: Signal =
                text.parse().map_err(|why: crate::domain::signal::InvalidSignal| {
                    let upper = text.to_ascii_uppercase();
                    let hint = match upper.parse::<Signal>() {
                        Ok(meant) => format!("did you mean \"{meant}\"?"),
                        Err(_) => "write a name, such as TERM, HUP, USR1 or RTMIN+3".to_owned(),
                    };
                    wrong(Code::BAD_SIGNAL, why.to_string(), hint)
                })?;
            Ok(Typed::Text(signal.to_string()))
        }
        Kind::User => {
            let text = text(kind, key, value)?;
            let (user, group) = text.split_once(':').unwrap_or((text, "0"));
            account_part(user).and_then(|()| account_part(group))?;
            Ok(Typed::Text(text.to_owned()))
        }
        Kind::EnvName => {
            let text = text(kind, key, value)?;
            if let Some((label, hint)) = super::env_name_mistake(text) {
                return Err(wrong(Code::BAD_ENV_NAME, label, hint));
            }
            Ok(Typed::Text(text.to_owned()))
        }
        Kind::Source => source(text(kind, key, value)?, names),
        Kind::Scalar => match value {
            Value::String(_) => text(kind, key, value).map(|t| Typed::Text(t.to_owned())),
            Value::Integer(number) => Ok(Typed::Integer(*number.value())),
            Value::Boolean(flag) => Ok(Typed::Bool(*flag.value())),
            Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::InlineTable(_) => {
                Err(mismatch(kind, key, value))
            }
        },
    }
}

fn type_words(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    }
}

fn mismatch(kind: Kind, key: &str, value: &Value) -> Wrong {
    let what = format!("`{key}` takes {}, not {}", kind.object(), type_words(value));
    let hint = match (kind, value) {
        (Kind::Bool | Kind::Integer(..), Value::String(text)) => {
            let text: String = text.value().chars().take(40).collect();
            let fits = match matches!(kind, Kind::Bool) {
                true => text.parse::<bool>().is_ok(),
                false => text.parse::<i64>().is_ok(),
            };
            match fits {
                true => format!("without quotes: {key} = {text}"),
                false => format!("{key} = {}", kind.example()),
            }
        }
        (Kind::Paths | Kind::Texts | Kind::Names | Kind::Regexes, Value::String(text)) => {
            format!("a list: {key} = [{}]", quoted(text.value()))
        }
        (Kind::Text | Kind::Template | Kind::Name | Kind::Mode | Kind::User, Value::Integer(n)) => {
            format!("with quotes: {key} = \"{}\"", n.value())
        }
        (Kind::Text | Kind::Template, Value::Float(n)) => {
            format!("with quotes: {key} = \"{}\"", n.display_repr())
        }
        (Kind::Text | Kind::Template, Value::Boolean(flag)) => {
            format!("with quotes: {key} = \"{}\"", flag.value())
        }
        (Kind::Choice(choices), _) => choices_hint(choices),
        _ => format!("{key} = {}", kind.example()),
    };
    wrong(Code::WRONG_TYPE, what, hint)
}

fn out_of_range(kind: Kind, key: &str, number: &str) -> Wrong {
    let what = format!("{number} is out of range");
    wrong(Code::OUT_OF_RANGE, what, format!("`{key}` takes {}", kind.object()))
}

fn text<'a>(kind: Kind, key: &str, value: &'a Value) -> Result<&'a str, Wrong> {
    let text = value.as_str().ok_or_else(|| mismatch(kind, key, value))?;
    fits(text)?;
    Ok(text)
}

fn fits(text: &str) -> Result<(), Wrong> {
    if text.contains('\0') {
        return Err(wrong(Code::NOT_TEXT, "holds NUL", "no program can be given a NUL"));
    }
    if text.len() > TEXT_BYTES_MAX {
        let hint = "Linux takes at most 128 KiB as one argument or variable";
        return Err(wrong(Code::TOO_MANY, "too long a text", hint));
    }
    Ok(())
}

fn list<'a>(kind: Kind, key: &str, value: &'a Value) -> Result<&'a Array, Wrong> {
    let list = value.as_array().ok_or_else(|| mismatch(kind, key, value))?;
    if list.len() > LIST_MAX {
        let hint = format!("at most {LIST_MAX}");
        return Err(wrong(Code::TOO_MANY, "too many elements", hint));
    }
    Ok(list)
}

fn texts(
    kind: Kind,
    key: &str,
    value: &Value,
    check: impl Fn(&str) -> Result<(), Wrong>,
) -> Result<Typed, Wrong> {
    let element = |value: &Value| {
        let at = |wrong: Wrong| Wrong { span: value.span(), ..wrong };
        let text = value.as_str().ok_or_else(|| {
            let what = format!("every element of `{key}` is a text, not {}", type_words(value));
            let plain = value.is_integer() || value.is_float() || value.is_bool();
            let hint = match plain {
                true => format!("with quotes: \"{}\"", value.clone().decorated("", "")),
                false => format!("{key} = {}", kind.example()),
            };
            at(wrong(Code::WRONG_TYPE, what, hint))
        })?;
        fits(text).and_then(|()| check(text)).map_err(at)?;
        Ok(text.to_owned())
    };
    list(kind, key, value)?.iter().map(element).collect::<Result<_, _>>().map(Typed::Texts)
}

fn argv(key: &str, value: &Value, names: Names) -> Result<Typed, Wrong> {
    if let Some(line) = value.as_str() {
        let hint = format!("write the list: {key} = {}", as_list(line));
        return Err(wrong(Code::EXEC_IS_TEXT, "a list of arguments, not one text", hint));
    }
    let typed = texts(Kind::Argv, key, value, |argument| template(argument, names))?;
    if let Typed::Texts(arguments) = &typed
        && arguments.first().is_none_or(String::is_empty)
    {
        let hint = format!("{key} = {}", Kind::Argv.example());
        return Err(wrong(Code::EMPTY_VALUE, "no program is named", hint));
    }
    Ok(typed)
}

fn template(text: &str, names: Names) -> Result<(), Wrong> {
    let template = Template::new(text);
    let pieces = template.pieces().map_err(|why| {
        let hint = match why {
            TemplateError::LoneDollar { .. } => {
                "write `$$` for a dollar sign; environment variables are not expanded"
            }
            TemplateError::Unclosed { .. } | TemplateError::UnknownName { .. } => {
                "write `${name}`, or `$$` for a dollar sign"
            }
        };
        wrong(Code::BAD_TEMPLATE, why.to_string(), hint)
    })?;
    for (_, piece) in pieces {
        let Piece::Name(name) = piece else { continue };
        if !names.known.contains(&name) && !names.open {
            return Err(unknown_name(name, names.known.iter().copied()));
        }
    }
    Ok(())
}

/// Says that nothing is called `${name}`, and what is.
pub(super) fn unknown_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Wrong {
    let shown: String = printable(name).chars().take(80).collect();
    let known: Vec<&str> = known.collect();
    let near = known.iter().map(|known| (strsim::osa_distance(known, name), known)).min();
    let hint = match near {
        Some((0..=2, near)) => format!("did you mean `${{{near}}}`?"),
        _ => format!("the names are {}; `$$` is a dollar sign", known.join(", ")),
    };
    wrong(Code::UNKNOWN_SUBSTITUTION, format!("nothing is called `${{{shown}}}`"), hint)
}

fn name(text: &str) -> Result<(), Wrong> {
    text.parse::<ServiceId>().map(drop).map_err(|_| {
        let hint = match map_to_token(text) {
            mapped if mapped.is_empty() => "write 1 to 63 of a-z, 0-9 and `-`".to_owned(),
            mapped => format!("`{mapped}` would do"),
        };
        wrong(Code::BAD_NAME, "names are 1 to 63 of a-z, 0-9 and `-`", hint)
    })
}

/// Checks the name or number of a user or a group, as far as that goes without looking it up.
fn account_part(text: &str) -> Result<(), Wrong> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$' | b'@');
    let hint = "write a name or a number, and the group after a colon: \"web:www-data\"";
    let fits = (1..=256).contains(&text.len()) && !text.starts_with('-');
    if fits && text.bytes().all(plain) {
        Ok(())
    } else {
        Err(wrong(Code::BAD_USER, "not a user or group", hint))
    }
}

fn quantity<T>(
    code: Code,
    key: &str,
    value: &Value,
    read: impl Fn(&str) -> Result<T, String>,
    unit: &str,
    other: &str,
) -> Result<T, Wrong> {
    if let Some(text) = value.as_str() {
        return read(text).map_err(|hint| wrong(code, "not readable as written", hint));
    }
    if let Some(n) = value.as_integer().filter(|n| *n >= 0) {
        let hint = if unit.is_empty() {
            format!("write {key} = \"{n:04}\"")
        } else if unit == other {
            format!("write {key} = \"{n}{unit}\"")
        } else {
            format!("write {key} = \"{n}{unit}\" or \"{n}{other}\"")
        };
        return Err(wrong(code, "a bare number", hint));
    }
    let hint = read("").err().unwrap_or_default();
    Err(wrong(code, format!("not {}", type_words(value)), hint))
}

/// Reads a number of nodes or a share of them, in the form in which it is written as a text.
fn amount(kind: Kind, key: &str, value: &Value) -> Result<String, Wrong> {
    match value {
        Value::Integer(number) => u32::try_from(*number.value())
            .map(|number| number.to_string())
            .map_err(|_| out_of_range(kind, key, &number.value().to_string())),
        Value::String(text) => quantity::percent(text.value())
            .map(|percent| format!("{percent}%"))
            .map_err(|hint| wrong(Code::BAD_PERCENT, "not readable as written", hint)),
        _ => Err(mismatch(kind, key, value)),
    }
}

fn choices_hint(choices: &[Choice]) -> String {
    let quoted: Vec<String> = choices
        .iter()
        .filter(|choice| choice.status == Status::Served)
        .map(|choice| format!("\"{}\"", choice.name))
        .collect();
    format!("one of {}", quoted.join(", "))
}

fn choice(kind: Kind, key: &str, value: &Value, choices: &[Choice]) -> Result<Typed, Wrong> {
    let text = text(kind, key, value)?;
    match choices.iter().find(|choice| choice.name == text) {
        Some(Choice { status: Status::Served, .. }) => Ok(Typed::Text(text.to_owned())),
        Some(Choice { status: Status::Reserved, .. }) => Err(wrong(
            Code::RESERVED_KEY,
            format!("\"{text}\" is known, not in this version"),
            choices_hint(choices),
        )),
        None => {
            let plain = text.to_ascii_lowercase().replace('-', "_");
            let near = choices.iter().find(|c| strsim::osa_distance(c.name, &plain) <= 2);
            let hint = match near {
                Some(near) => format!("did you mean \"{}\"? {}", near.name, choices_hint(choices)),
                None => choices_hint(choices),
            };
            Err(wrong(Code::UNKNOWN_VALUE, format!("not a value of `{key}`"), hint))
        }
    }
}

fn regex(text: &str) -> Result<(), Wrong> {
    let regex = regex::RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    regex.map(drop).map_err(|why| {
        let why = why.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint = "single quotes keep backslashes as they are: match = '\\d+'";
        wrong(Code::BAD_REGEX, format!("not a regular expression: {why}"), hint)
    })
}

fn exit_codes(kind: Kind, key: &str, value: &Value) -> Result<Typed, Wrong> {
    let element = |value: &Value| {
        let code = value.as_integer().and_then(|code| u8::try_from(code).ok());
        code.ok_or_else(|| Wrong {
            span: value.span(),
            ..wrong(Code::OUT_OF_RANGE, "exit codes are 0 to 255", format!("{key} = [0]"))
        })
    };
    list(kind, key, value)?.iter().map(element).collect::<Result<_, _>>().map(Typed::Codes)
}

fn source(text: &str, names: Names) -> Result<Typed, Wrong> {
    template(text, names)?;
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Typed::Text(path.to_owned())),
        Some(("sealed" | "systemd", _)) => Err(wrong(
            Code::RESERVED_KEY,
            "known, not in this version",
            "one that is served: \"file:/absolute/path\"",
        )),
        _ => Err(wrong(
            Code::BAD_CREDENTIAL,
            "not the source of a credential",
            "write \"file:/absolute/path\"; secrets themselves do not belong into a spec",
        )),
    }
}
