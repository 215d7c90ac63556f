//! Files of `KEY=VALUE` lines. What they hold may be secret, so no mistake shows a line of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::load::read_text;
use super::mistake::Mistake;
use super::read::env_name_mistake;
use crate::domain::code::Code;

/// Reads a file of variables, or says all that is wrong with it. A missing file is a mistake.
pub fn load_env_file(path: &Path) -> Result<BTreeMap<String, String>, Vec<Mistake>> {
    let text = read_text(path).map_err(|mistake| vec![mistake])?;
    parse_env_file(&path.display().to_string(), &text)
}

/// Reads the text of a file of variables.
///
/// Lines are `KEY=VALUE`, empty, or begin with `#`. Blanks around the value are dropped; a pair of
/// single or double quotes around the whole value is dropped and keeps the blanks inside. Nothing
/// is expanded. Of several lines for one key the last one counts.
pub fn parse_env_file(shown: &str, text: &str) -> Result<BTreeMap<String, String>, Vec<Mistake>> {
    let mut variables = BTreeMap::new();
    let mut mistakes = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match variable(line) {
            Ok((key, value)) => drop(variables.insert(key.to_owned(), value.to_owned())),
            Err((code, label, hint)) => {
                let place = format!("{shown}:{}", at + 1);
                mistakes.push(Mistake::new(code, place, None, label).hint(hint));
            }
        }
    }
    if mistakes.is_empty() { Ok(variables) } else { Err(mistakes) }
}

type Wrong = (Code, String, &'static str);

fn variable(line: &str) -> Result<(&str, &str), Wrong> {
    let wrong = |label: &str, hint| (Code::BAD_ENV_FILE, label.to_owned(), hint);
    if line.contains('\0') {
        return Err((Code::NOT_TEXT, "holds NUL".to_owned(), "no program can be given a NUL"));
    }
    let (key, value) = line
        .split_once('=')
        .ok_or_else(|| wrong("not KEY=VALUE", "values over several lines are not possible"))?;
    let key = key.trim_end();
    if key.strip_prefix("export").is_some_and(|rest| rest.starts_with(char::is_whitespace)) {
        return Err(wrong("`export` is of the shell", "write KEY=VALUE alone"));
    }
    if let Some((label, hint)) = env_name_mistake(key) {
        // What is no name may be a piece of a secret.
        let is_plain = key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let label =
            if is_plain { label } else { "what stands before `=` is not a name".to_owned() };
        return Err((Code::BAD_ENV_NAME, label, hint));
    }
    let value = value.trim();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else { return Ok((key, value)) };
    match value[1..].strip_suffix(quote) {
        Some(inner) => Ok((key, inner)),
        None => Err(wrong("a quote that is not closed", "close it at the end of the line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BTreeMap<String, String>, Vec<Mistake>> {
        parse_env_file("web.env", text)
    }

    #[test]
    fn lines_are_key_and_value_and_the_last_one_counts() {
        let text = "# comment\n\nA=1\r\nB = two words \nC=\"  kept  \"\nD='x=y$Z'\nE=\nA=3\n";
        let variables = parse(text).unwrap();
        let pairs: Vec<_> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["A=3", "B=two words", "C=  kept  ", "D=x=y$Z", "E="]);
    }

    #[test]
    fn every_wrong_line_is_told_by_its_number_and_never_shown() {
        let text =
            "hunter2\nexport A=hunter2\nB=\"hunter2\nhunter2+/==\nSMGR_RUN=hunter2\nD=\"\nE='\n";
        let mistakes = parse(text).unwrap_err();
        let places: Vec<_> = mistakes.iter().map(Mistake::place).collect();
        assert_eq!(places.len(), 7);
        assert_eq!(places[2], "web.env:3");
        let screen = crate::config::render(&mistakes, "nothing was started", None);
        assert!(!screen.contains("hunter2"), "{screen}");
    }

    #[test]
    fn a_missing_file_is_a_mistake() {
        let mistakes = load_env_file(Path::new("/nonexistent/web.env")).unwrap_err();
        assert_eq!(mistakes[0].code, Code::FILE_UNREADABLE);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,80}|([A-Z=\"'# ]{0,8}\n){0,5}") {
            drop(parse(&text));
        }
    }
}
