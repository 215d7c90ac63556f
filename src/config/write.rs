//! The files that smgr writes for people: `smgr run` and `smgr init`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, value};

use super::keys::{self, Found, Key, Kind};
use super::mistake::Mistake;
use crate::domain::code::Code;
use crate::domain::template::Template;

/// A commented `smgr.toml` for `smgr init`. Lines that begin with `#` and no blank are settings.
const TEMPLATE: &str = include_str!("template.toml");

/// The line of [`TEMPLATE`] that says as whom a service runs.
const USER_LINE: &str = "#user = \"web\"";

/// Returns a commented file of a project, for a service that runs as `user` where smgr runs as root.
pub fn template(user: Option<&str>) -> String {
    match user {
        Some(user) => TEMPLATE.replacen(USER_LINE, &format!("user = {}", value(user)), 1),
        None => TEMPLATE.to_owned(),
    }
}

/// What `smgr run` keeps of a service.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program and its arguments, each as it is.
    pub exec: Vec<String>,
    /// Where it was called, absolute.
    pub working_dir: String,
    /// As whom it runs; needed when smgr runs as root.
    pub user: Option<String>,
}

/// Returns the text of the file for a command.
pub fn service_text(command: &Command) -> String {
    let literal = |text: &str| Template::literal(text).as_str().to_owned();
    let mut document = DocumentMut::new();
    let exec: Array = command.exec.iter().map(|argument| literal(argument)).collect();
    document["exec"] = value(exec);
    document["working_dir"] = value(literal(&command.working_dir));
    if let Some(user) = &command.user {
        document["user"] = value(user.as_str());
    }
    format!("# written by smgr run; it is yours to edit: smgr help spec\n\n{document}")
}

/// Writes the file for a command.
///
/// The folder is made if need be. A file that is there is kept, and is a mistake, unless it says
/// the same.
pub fn write_service_file(path: &Path, command: &Command) -> Result<(), Mistake> {
    write_new(path, &service_text(command))
}

/// Writes a file that must not be there yet: whole or not at all, and durable.
pub fn write_new(path: &Path, text: &str) -> Result<(), Mistake> {
    let refuse = |code, label: String| Mistake::new(code, path.display().to_string(), None, label);
    let failed = |error: io::Error| refuse(Code::CANNOT_WRITE, error.to_string());
    if path.exists() {
        return match fs::read_to_string(path) {
            Ok(there) if there == text => Ok(()),
            _ => Err(refuse(Code::FILE_IN_THE_WAY, "there is a file already".to_owned())
                .hint("edit it, or choose another name")),
        };
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(failed)?;
    let beside = beside(path);
    // What a process of the same id left behind when it was killed.
    drop(fs::remove_file(&beside));
    let written = write_durably(&beside, text).and_then(|()| {
        // A link, unlike a rename, does not replace a file that came in between.
        fs::hard_link(&beside, path)?;
        fs::File::open(folder)?.sync_all()
    });
    // Its absence is as good.
    drop(fs::remove_file(&beside));
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            refuse(Code::FILE_IN_THE_WAY, "there is a file already".to_owned())
        } else {
            failed(error)
        }
    })
}

/// Returns the name of the file that is written first: hidden, so that nobody reads it half-way.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Returns a value that is written as TOML as programs read it; what is none is a text, and what is not told is null.
pub fn json_value(toml: &str) -> serde_json::Value {
    if toml.is_empty() {
        return serde_json::Value::Null;
    }
    let document = format!("value = {toml}").parse::<toml_edit::DocumentMut>();
    let value = document.as_ref().ok().and_then(|document| document.get("value")?.as_value());
    value.map_or_else(|| toml.into(), to_json)
}

fn to_json(value: &toml_edit::Value) -> serde_json::Value {
    match value {
        toml_edit::Value::String(text) => text.value().as_str().into(),
        toml_edit::Value::Integer(number) => (*number.value()).into(),
        toml_edit::Value::Float(number) => (*number.value()).into(),
        toml_edit::Value::Boolean(flag) => (*flag.value()).into(),
        toml_edit::Value::Datetime(time) => time.value().to_string().into(),
        toml_edit::Value::Array(values) => values.iter().map(to_json).collect(),
        toml_edit::Value::InlineTable(table) => {
            table.iter().map(|(key, value)| (key.to_owned(), to_json(value))).collect()
        }
    }
}

/// Returns a spec with keys changed, each written `log.max_size` with a value as TOML, or else as a text; of a key that
/// takes a text the value need not be in quotes.
///
/// # Errors
/// When the spec is no TOML, or a key leads through something that is no block.
pub fn with_settings(text: &str, settings: &[(String, String)]) -> Result<String, String> {
    if settings.is_empty() {
        return Ok(text.to_owned());
    }
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    for (key, value) in settings {
        let mut names: Vec<&str> = key.split('.').collect();
        let last = names.pop().filter(|name| !name.is_empty());
        let last = last.ok_or_else(|| format!("`{key}` is no key"))?;
        let mut table = document.as_table_mut() as &mut dyn toml_edit::TableLike;
        for name in names {
            let block = table.entry(name).or_insert_with(toml_edit::table);
            let shown = || format!("`{key}`: `{name}` is no block");
            table = block.as_table_like_mut().ok_or_else(shown)?;
        }
        let text = || toml_edit::Value::from(value.as_str());
        let value = match value.parse() {
            Ok(toml) if toml_edit::Value::is_str(&toml) || !takes_text(key) => toml,
            _ => text(),
        };
        table.insert(last, toml_edit::Item::Value(value));
    }
    Ok(document.to_string())
}

/// Says whether a key takes a text and nothing else.
fn takes_text(key: &str) -> bool {
    let path: Vec<&str> = key.split('.').collect();
    matches!(
        keys::find(keys::SERVICE, &path),
        Found::Key(Key { kind: Kind::Text | Kind::Template | Kind::Path, .. })
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_that_takes_a_text_takes_it_without_quotes() {
        let set = |key: &str, value: &str| {
            with_settings("", &[(key.to_owned(), value.to_owned())]).unwrap()
        };
        for (value, written) in [
            ("1", "\"1\""),
            ("\"1\"", "\"1\""),
            ("true", "\"true\""),
            ("[1]", "\"[1]\""),
            ("", "\"\""),
            ("a b", "\"a b\""),
        ] {
            assert_eq!(set("env.X", value), format!("[env]\nX = {written}\n"));
        }
        assert_eq!(set("instances", "2"), "instances = 2\n");
        assert_eq!(set("exec", "[\"a\"]"), "exec = [\"a\"]\n");
    }

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Input, Options, Part, assemble, render};
    use crate::domain::origin::Layer;
    use crate::domain::spec::Spec;

    fn read(part: Part, text: &str) -> Vec<Spec> {
        let input = Input {
            part,
            shown: "x.toml".to_owned(),
            stem: "x".to_owned(),
            folder: (part == Part::Project).then(|| "/srv/shop".to_owned()),
            text: text.to_owned(),
        };
        let loaded = assemble(vec![input], &Options::default())
            .unwrap_or_else(|mistakes| panic!("{}\n{text}", render(&mistakes, "-", None)));
        loaded.services.into_values().map(|service| service.spec).collect()
    }

    #[test]
    fn the_template_passes_the_check_as_it_is_and_with_every_setting_switched_on() {
        assert_eq!(read(Part::Project, &template(None)).len(), 1);
        let by_root = read(Part::Project, &template(Some("ana")));
        assert_eq!(by_root[0].user.as_ref().unwrap().user, "ana");
        let on = TEMPLATE.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let on: Vec<&str> = on.collect();
        assert!(read(Part::Project, &on.join("\n")).len() > 1);
    }

    #[test]
    fn a_file_that_somebody_wrote_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.d/hello.toml");
        let mut command =
            Command { exec: vec!["a".to_owned()], working_dir: "/".to_owned(), user: None };
        write_service_file(&path, &command).unwrap();
        write_service_file(&path, &command).unwrap();
        command.exec.push("b".to_owned());
        assert_eq!(write_service_file(&path, &command).unwrap_err().code, Code::FILE_IN_THE_WAY);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("exec = [\"a\"]\nworking_dir = \"/\"\n"), "{text}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_what_was_meant(
            program in "[^\\x00]{1,12}",
            arguments in prop::collection::vec("[^\\x00]{0,12}", 0..5),
            folder in "/[^\\x00]{0,12}",
        ) {
            let mut exec = vec![program];
            exec.extend(arguments);
            let command =
                Command { exec: exec.clone(), working_dir: folder.clone(), user: None };
            let spec = read(Part::Body(Layer::Host), &service_text(&command)).remove(0);
            let expand = |template: &Template| template.expand(|_| None).unwrap();
            prop_assert_eq!(spec.exec.iter().map(expand).collect::<Vec<_>>(), exec);
            prop_assert_eq!(expand(&spec.working_dir), folder);
        }
    }
}
