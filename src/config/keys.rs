//! The keys of spec files and of the node's own file: what they are called, take and mean.
//!
//! One table for each kind of file. The parser, `did you mean`, `smgr help spec`, the JSON Schema and
//! `docs/spec.md` are all made from it. A key that is reserved is known but not served yet.

mod node;
mod service;

use std::collections::BTreeSet;

pub use node::NODE;
pub use service::SERVICE;

/// Whether a key, or a value of it, has its function in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has.
    Served,
    /// Its name and meaning are fixed; it is refused as "known, not in this version".
    Reserved,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands; `*` stands for a name that the writer chooses.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds when it is absent.
    pub default: Default,
    /// What it means, in a line.
    pub doc: &'static str,
    /// Whether it has its function in this version.
    pub status: Status,
}

/// What holds when a key is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// Its block cannot do without it.
    Required,
    /// Nothing.
    None,
    /// This value, written as TOML.
    Toml(&'static str),
    /// What these words say.
    Words(&'static str),
}

/// One of the values that a key can have.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// How it is written.
    pub name: &'static str,
    /// Whether it has its function in this version.
    pub status: Status,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The version of the format.
    Version,
    /// A text as it stands.
    Text,
    /// A text with `${name}` in it.
    Template,
    /// A path with `${name}` in it.
    Path,
    /// Paths with `${name}` in them.
    Paths,
    /// A program and its arguments, with `${name}` in them. Never a shell.
    Argv,
    /// Texts as they stand.
    Texts,
    /// A name of a thing.
    Name,
    /// Names of things, or of users and groups.
    Names,
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second.
    Integer(i64, i64),
    /// A number from the first to the second, both in thousandths.
    Number(u32, u32),
    /// A length of time with its unit.
    Duration,
    /// A size with its unit.
    Size,
    /// Whole percent.
    Percent,
    /// A number of nodes, or a share of them in whole percent.
    Amount,
    /// The same, or a list of them.
    Amounts,
    /// Any number.
    Figure,
    /// Lines a second.
    Rate,
    /// Octal digits.
    Mode,
    /// One of these words.
    Choice(&'static [Choice]),
    /// A regular expression.
    Regex,
    /// Regular expressions.
    Regexes,
    /// Exit codes, 0 to 255.
    ExitCodes,
    /// The name of a signal.
    Signal,
    /// `name` or `name:group`.
    User,
    /// The name of an environment variable.
    EnvName,
    /// Where the bytes of a credential are.
    Source,
    /// A text, a whole number or a boolean.
    Scalar,
    /// Reserved, so not read; the words say what it will take.
    Other(&'static str),
}

impl Kind {
    /// Returns what the key takes, in words.
    pub fn words(self) -> String {
        match self {
            Self::Version => "1".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Template => "text with ${name}".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Paths => "list of paths".to_owned(),
            Self::Argv => "list: program and arguments".to_owned(),
            Self::Texts => "list of texts".to_owned(),
            Self::Name => "name".to_owned(),
            Self::Names => "list of names".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Integer(min, i64::MAX) => format!("integer from {min}"),
            Self::Integer(i64::MIN, _) => "integer".to_owned(),
            Self::Integer(min, max) => format!("integer from {min} to {max}"),
            Self::Number(min, max) => {
                let [min, max] = [min, max].map(|n| f64::from(n) / 1000.0);
                format!("number from {min} to {max}")
            }
            Self::Duration => "duration".to_owned(),
            Self::Size => "size".to_owned(),
            Self::Percent => "percent".to_owned(),
            Self::Amount => "whole number or percent of nodes".to_owned(),
            Self::Amounts => "whole number or percent of nodes, or a list of them".to_owned(),
            Self::Figure => "number".to_owned(),
            Self::Rate => "lines a second".to_owned(),
            Self::Mode => "octal text".to_owned(),
            Self::Choice(choices) => {
                choices.iter().map(|choice| choice.name).collect::<Vec<_>>().join(", ")
            }
            Self::Regex => "regular expression".to_owned(),
            Self::Regexes => "list of regular expressions".to_owned(),
            Self::ExitCodes => "list of exit codes".to_owned(),
            Self::Signal => "signal".to_owned(),
            Self::User => "user or user:group".to_owned(),
            Self::EnvName => "name of a variable".to_owned(),
            Self::Source => "file:PATH".to_owned(),
            Self::Scalar => "text, integer or boolean".to_owned(),
            Self::Other(words) => words.to_owned(),
        }
    }

    /// Says whether its words need no article.
    fn is_bare(self) -> bool {
        matches!(self, Self::Version | Self::Bool | Self::Choice(_) | Self::Rate | Self::Other(_))
    }

    /// Returns what the key takes, as the object of a sentence.
    pub fn object(self) -> String {
        let words = self.words();
        if matches!(self, Self::Integer(..) | Self::Mode) {
            return format!("an {words}");
        }
        if self.is_bare() { words } else { format!("a {words}") }
    }

    /// Returns a value as an example of how it is written.
    pub fn example(self) -> &'static str {
        match self {
            Self::Text | Self::Template | Self::Scalar => "\"text\"",
            Self::Path => "\"/srv/web\"",
            Self::Paths => "[\"/srv/web\"]",
            Self::Argv => "[\"/usr/bin/program\", \"--flag\"]",
            Self::Texts => "[\"text\"]",
            Self::Name | Self::User => "\"web\"",
            Self::Names => "[\"web\"]",
            Self::Bool => "true",
            Self::Version | Self::Integer(..) | Self::Number(..) | Self::Amount => "1",
            Self::Amounts => "[1, \"25%\"]",
            Self::Figure => "0.5",
            Self::Duration => "\"30s\"",
            Self::Size => "\"512MiB\"",
            Self::Percent => "\"25%\"",
            Self::Rate => "\"20000/s\"",
            Self::Mode => "\"0022\"",
            Self::Choice([first, ..]) => first.name,
            Self::Choice([]) | Self::Other(_) => "\"\"",
            Self::Regex => "'^ready'",
            Self::Regexes => "['password=\\S+']",
            Self::ExitCodes => "[0]",
            Self::Signal => "\"TERM\"",
            Self::EnvName => "\"DATABASE_URL\"",
            Self::Source => "\"file:/etc/smgr/credentials/web/key\"",
        }
    }
}

/// What stands at a path.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// A key.
    Key(&'static Key),
    /// A block of keys; reserved when none of them is served.
    Block(Status),
    /// Nothing.
    Nothing,
}

/// Says what `table` has at `path`.
pub fn find(table: &'static [Key], path: &[&str]) -> Found {
    let mut block = None;
    for key in table {
        let mut pattern = key.path.split('.');
        let fits = path.iter().all(|name| pattern.next().is_some_and(|p| p == "*" || p == *name));
        match (fits, pattern.next()) {
            (true, None) => return Found::Key(key),
            (true, Some(_)) if key.status == Status::Served => block = Some(Status::Served),
            (true, Some(_)) => block = block.or(Some(Status::Reserved)),
            (false, _) => {}
        }
    }
    block.map_or(Found::Nothing, Found::Block)
}

/// Says whether a spec file can have such a key, or a block of that name: `env.MODE`.
pub fn is_known(key: &str) -> bool {
    let path: Vec<&str> = key.split('.').collect();
    !path.contains(&"") && !matches!(find(SERVICE, &path), Found::Nothing)
}

/// Checks that what is set no more is a key, or was set, maybe by a version that knew more keys than this one. That it is not
/// set any more is remembered for ever, so it may not be just anything.
///
/// # Errors
/// What is none.
pub fn check_unset(unset: &BTreeSet<String>, was_set: impl Fn(&str) -> bool) -> Result<(), String> {
    match unset.iter().find(|key| !is_known(key) && !was_set(key)) {
        Some(key) => Err(format!("`{key}` is no key of a service")),
        None => Ok(()),
    }
}

/// Says whether the names in the block at `path` are chosen by the writer.
pub fn is_keyed(table: &'static [Key], path: &[&str]) -> bool {
    table.iter().any(|key| {
        let mut pattern = key.path.split('.');
        path.iter().all(|name| pattern.next().is_some_and(|p| p == "*" || p == *name))
            && pattern.next() == Some("*")
    })
}

/// Returns the names that the block at `path` can have, without repeats.
pub fn names_in(table: &'static [Key], path: &[&str]) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for key in table {
        let mut pattern = key.path.split('.');
        if path.iter().all(|name| pattern.next().is_some_and(|p| p == "*" || p == *name))
            && let Some(name) = pattern.next().filter(|name| *name != "*")
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// What other programs call a key, in lower case and without `_`.
const FOREIGN: &[(&str, &str)] = &[
    ("command", "exec"),
    ("cmd", "exec"),
    ("args", "exec"),
    ("execstart", "exec"),
    ("environment", "env"),
    ("environmentfile", "env_files"),
    ("envfile", "env_files"),
    ("cwd", "working_dir"),
    ("workdir", "working_dir"),
    ("directory", "working_dir"),
    ("workingdirectory", "working_dir"),
    ("replicas", "instances"),
    ("scale", "instances"),
    ("numprocs", "instances"),
    ("uid", "user"),
    ("after", "depends_on"),
    ("requires", "depends_on"),
    ("wants", "depends_on"),
    ("type", "kind"),
    ("autostart", "enabled"),
    ("autorestart", "restart.policy"),
    ("restartsec", "restart.delay"),
    ("startlimitburst", "restart.limit"),
    ("stopsignal", "stop.signal"),
    ("killsignal", "stop.signal"),
    ("stopgraceperiod", "stop.timeout"),
    ("timeoutstopsec", "stop.timeout"),
    ("healthcheck", "health"),
    ("secrets", "credential"),
    ("credentials", "credential"),
    ("actions", "action"),
    ("loadcredential", "credential"),
    ("oomscoreadjust", "limits.oom_score_adjust"),
    ("oomscoreadj", "limits.oom_score_adjust"),
];

/// Proposes the key that was probably meant by `name` in the block at `path`.
pub fn did_you_mean(table: &'static [Key], path: &[&str], name: &str) -> Option<String> {
    let near = |known: &str| {
        let distance = strsim::osa_distance(known, name);
        let allowed = known.len().max(name.len()) / 3;
        (distance <= allowed.clamp(1, 3)).then_some(distance)
    };
    let here = names_in(table, path);
    if let Some(known) = here.iter().filter(|known| near(known).is_some()).min_by_key(|k| near(k)) {
        return Some((*known).to_owned());
    }
    let plain: String = name.to_ascii_lowercase().replace('-', "_");
    if let Some(known) = here.iter().find(|known| **known == plain) {
        return Some((*known).to_owned());
    }
    let squeezed = plain.replace('_', "");
    let foreign = FOREIGN.iter().find(|(theirs, _)| *theirs == squeezed);
    if let Some((_, ours)) = foreign
        && here.contains(&ours.split('.').next().unwrap_or(ours))
    {
        return Some((*ours).to_owned());
    }
    // The right name in the wrong block: said only when there is one such place.
    let mut elsewhere = table
        .iter()
        .filter(|key| !key.path.contains('*') && key.path.rsplit('.').next() == Some(name))
        .map(|key| key.path.to_owned());
    match (elsewhere.next(), elsewhere.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_tables_share_no_path() {
        assert!(NODE.iter().all(|key| SERVICE.iter().all(|other| other.path != key.path)));
    }

    #[test]
    fn no_key_stands_twice_or_is_also_a_block() {
        for table in [SERVICE, NODE] {
            for (at, key) in table.iter().enumerate() {
                assert!(table[at + 1..].iter().all(|other| other.path != key.path), "{}", key.path);
                let inside = format!("{}.", key.path);
                assert!(!table.iter().any(|other| other.path.starts_with(&inside)), "{}", key.path);
                assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{}", key.path);
            }
        }
    }

    #[test]
    fn a_misspelt_foreign_or_misplaced_key_is_answered_with_ours() {
        let ask = |path: &[&str], name| did_you_mean(SERVICE, path, name);
        assert_eq!(ask(&[], "exce").as_deref(), Some("exec"));
        assert_eq!(ask(&["limits"], "memroy").as_deref(), Some("memory"));
        assert_eq!(ask(&[], "command").as_deref(), Some("exec"));
        assert_eq!(ask(&[], "working-dir").as_deref(), Some("working_dir"));
        assert_eq!(ask(&[], "StopSignal").as_deref(), Some("stop.signal"));
        assert_eq!(ask(&[], "oom_score_adjust").as_deref(), Some("limits.oom_score_adjust"));
        assert_eq!(ask(&["action", "x"], "exce").as_deref(), Some("exec"));
        assert_eq!(ask(&[], "blubb"), None);
    }
}
