//! Command lines, taken apart for the hint that says how to write them as a list.

use toml_edit::Value;

use crate::domain::text::printable;

/// Returns a command line as the TOML list to paste: its words, or a shell where it needs one.
pub(super) fn as_list(line: &str) -> String {
    let line: String = printable(line).chars().take(400).collect();
    let needs_shell = line.contains(['|', '&', ';', '<', '>', '`', '*', '$', '~']);
    let words = match needs_shell {
        true => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.replace('$', "$$")],
        false => words(&line),
    };
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", quoted.join(", "))
}

/// Takes a command line apart as a shell would, as far as blanks, quotes and backslashes go.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                any = true;
            }
            ('\\', None | Some('"')) => word.extend(chars.next()),
            (c, None) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (c, _) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Returns a text as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_becomes_the_list_to_paste() {
        assert_eq!(as_list("./server --port 8080"), r#"["./server", "--port", "8080"]"#);
        assert_eq!(as_list(r#"a 'b c' "d" '' e\ f"#), r#"["a", "b c", "d", "", "e f"]"#);
        assert_eq!(as_list("a | b $X"), r#"["/bin/sh", "-c", "a | b $$X"]"#);
    }
}
