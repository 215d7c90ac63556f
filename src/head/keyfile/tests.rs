use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::domain::intent::Verb;
use crate::domain::policy::{Request, allowed_by};

fn owner() -> Owner {
    Owner {
        fleet: "local".parse().unwrap(),
        node: "n1".parse().unwrap(),
        operator: "ana".parse().unwrap(),
        now: UnixMicros(1_795_000_000_000_000),
    }
}

fn fresh() -> (tempfile::TempDir, StateFolder) {
    let temp = tempfile::tempdir().unwrap();
    let folder = StateFolder::new(temp.path().join("state"));
    (temp, folder)
}

fn snapshot(folder: &StateFolder) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = [folder.root().to_owned(), folder.keys()]
        .iter()
        .flat_map(|path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_keys_of_a_machine_are_made_once_and_trusted() {
    let (_temp, folder) = fresh();
    let first = make_keys_and_trust(&folder, &owner()).unwrap();
    let before = snapshot(&folder);
    let again = make_keys_and_trust(&folder, &owner()).unwrap();
    assert!(first.made && !again.made);
    assert_eq!(before, snapshot(&folder));
    assert_eq!(again.ring.iter().count(), 3);
}

#[test]
fn operator_and_local_root_may_do_everything_on_this_node_and_nothing_elsewhere() {
    let (_temp, folder) = fresh();
    let keys = make_keys_and_trust(&folder, &owner()).unwrap();
    for name in [KeyName::Operator, KeyName::Local] {
        let signer = load_key(&name.path(&folder)).unwrap();
        let (_, holder) = keys.ring.get(signer.kid()).unwrap();
        for (node, allowed) in [("n1", true), ("n2", false)] {
            let node = node.parse().unwrap();
            let request = Request { verb: Verb::Shutdown, service: None, node: &node };
            assert_eq!(allowed_by(&holder.grants, request).is_some(), allowed, "{name:?} {node}");
        }
    }
}

#[test]
fn killed_between_any_two_files_the_next_call_completes_the_folder() {
    let (_temp, whole) = fresh();
    make_keys_and_trust(&whole, &owner()).unwrap();
    let order = [
        "keys/root.key",
        "keys/root.pub",
        "keys/operator.key",
        "keys/operator.pub",
        "keys/node.key",
        "keys/node.pub",
        "keys/local.key",
        "keys/local.pub",
        "root.pub",
        "trust.smgr",
    ];
    assert_eq!(snapshot(&whole).len(), order.len(), "the order below names every file");
    for reached in 0..order.len() {
        let (_temp, folder) = fresh();
        folder.make().unwrap();
        for name in &order[..reached] {
            fs::copy(whole.root().join(name), folder.root().join(name)).unwrap();
        }
        let keys = make_keys_and_trust(&folder, &owner()).unwrap();
        assert!(keys.made, "after {reached} files");
        for name in &order[..reached] {
            let (kept, now) = (whole.root().join(name), folder.root().join(name));
            assert_eq!(fs::read(kept).unwrap(), fs::read(now).unwrap(), "{name} was kept");
        }
    }
}

#[test]
fn a_folder_whose_files_do_not_belong_together_is_refused() {
    let breaks: [fn(&StateFolder); 4] = [
        |folder| fs::remove_file(folder.root_pin()).unwrap(),
        |folder| fs::write(folder.root_pin(), "nonsense").unwrap(),
        |folder| {
            fs::remove_file(folder.trust()).unwrap();
            fs::remove_file(KeyName::Root.path(folder)).unwrap();
        },
        |folder| {
            fs::copy(KeyName::Local.path(folder), KeyName::Node.path(folder)).unwrap();
        },
    ];
    for (number, damage) in breaks.iter().enumerate() {
        let (_temp, folder) = fresh();
        make_keys_and_trust(&folder, &owner()).unwrap();
        damage(&folder);
        let error = make_keys_and_trust(&folder, &owner()).unwrap_err();
        assert!(matches!(error, MakeKeysError::Torn(_)), "{number}: {error}");
    }
}

#[test]
fn a_changed_trust_envelope_is_refused() {
    let (_temp, folder) = fresh();
    make_keys_and_trust(&folder, &owner()).unwrap();
    let mut bytes = fs::read(folder.trust()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(folder.trust(), bytes).unwrap();
    let error = make_keys_and_trust(&folder, &owner()).unwrap_err();
    assert!(matches!(error, MakeKeysError::Trust { .. }), "{error}");
}

#[test]
fn the_root_key_may_be_taken_away_once_there_is_trust() {
    let (_temp, folder) = fresh();
    make_keys_and_trust(&folder, &owner()).unwrap();
    fs::remove_file(KeyName::Root.path(&folder)).unwrap();
    assert!(make_keys_and_trust(&folder, &owner()).is_ok());
}

#[test]
fn a_key_that_others_can_reach_is_not_loaded() {
    let (temp, folder) = fresh();
    make_keys_and_trust(&folder, &owner()).unwrap();
    let path = KeyName::Operator.path(&folder);
    let reason = |path: &Path| load_key(path).unwrap_err().to_string();

    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    assert!(reason(&path).contains("by others"));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();

    let second = temp.path().join("second");
    fs::hard_link(&path, &second).unwrap();
    assert!(reason(&path).contains("more than one name"));
    fs::remove_file(&second).unwrap();

    symlink(&path, &second).unwrap();
    assert!(matches!(load_key(&second), Err(LoadKeyError::Open { .. })));
    assert!(reason(&folder.keys()).contains("not a regular file"));

    for (bytes, why) in [(31, "cut short"), (33, "more than 32")] {
        fs::write(&path, vec![7; bytes]).unwrap();
        assert!(reason(&path).contains(why));
    }
    assert!(matches!(load_key(&temp.path().join("none")), Err(LoadKeyError::Missing { .. })));
}
