//! What must hold of an expression that selects nodes, and of a name of instances, whatever was written.

use std::collections::BTreeSet;
use std::fmt::Display;

use smgr::cli::selector::Scope;
use smgr::domain::id::NodeId;
use smgr::domain::selector::{InvalidSelector, Roster, Selector};

/// Some nodes with labels.
fn roster() -> Roster {
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
    };
    let node = |name: &str| name.parse().expect("a constant that is a name");
    Roster::from([
        (node("n1"), labels(&[("env", "prod"), ("role", "web"), ("group", "shop")])),
        (node("n2"), labels(&[("env", "prod"), ("role", "db"), ("old", "yes")])),
        (node("n3"), labels(&[("env", "test"), ("role", "web"), ("name", "n1")])),
        (node("n4"), labels(&[])),
    ])
}

/// Asserts what must hold of a text that `read` reads or refuses.
///
/// # Panics
/// When it does not hold.
pub fn holds(text: &str, read: impl Fn(&str) -> Result<Selector, InvalidSelector>) {
    let roster = roster();
    let selector = match read(text) {
        Ok(selector) => selector,
        Err(why) => return is_a_sentence(&why.to_string(), 512),
    };
    assert!(!text.trim().is_empty(), "nothing means everything");
    let again = read(&selector.to_string()).expect("what is written reads");
    assert_eq!(again, selector, "it reads as something else than it says");
    let Ok(found) = selector.select(&roster) else { return };
    assert!(!found.is_empty(), "an empty selection is an error");
    let means = |node: &NodeId| text.trim() == "*" || text.split(',').all(|term| says(term, node));
    let meant: BTreeSet<NodeId> = roster.keys().filter(|node| means(node)).cloned().collect();
    assert_eq!(found, meant, "it selects others than it says");
}

/// Asserts what must hold of a text that `read` reads as the name of instances, or refuses.
///
/// # Panics
/// When it does not hold.
pub fn names<E: Display>(text: &str, read: impl Fn(&str) -> Result<Scope, E>) {
    let scope = match read(text) {
        Ok(scope) => scope,
        // It quotes up to 200 characters.
        Err(why) => return is_a_sentence(&why.to_string(), 2048),
    };
    let shown = match &scope {
        Scope::Instances(selector) => selector.to_string(),
        Scope::Node(node) => format!("@{node}"),
    };
    assert_eq!(read(&shown).ok(), Some(scope), "it reads as something else than it says");
}

fn is_a_sentence(why: &str, bytes_max: usize) {
    assert!(!why.is_empty() && why.len() < bytes_max, "{why:?} is no sentence");
    assert!(!why.contains(char::is_control), "{why:?} is not one line");
}

/// Says what a term says of a node, read once more and as simply as can be.
fn says(term: &str, node: &NodeId) -> bool {
    let roster = roster();
    let value = |label: &str| match label.trim() {
        "name" => Some(node.to_string()),
        label => roster[node].get(label).cloned(),
    };
    let is_one_of = |label: &str, list: &str| {
        value(label).is_some_and(|value| list.split('|').any(|one| one.trim() == value))
    };
    match (term.split_once('='), term.trim().strip_prefix('!')) {
        (Some((label, list)), _) => match label.trim().strip_suffix('!') {
            Some(label) => !is_one_of(label, list),
            None => is_one_of(label, list),
        },
        (None, Some(label)) => value(label).is_none(),
        (None, None) => value(term).is_some(),
    }
}
