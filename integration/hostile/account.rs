//! What a process of another user has: nothing of root's.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::machine::{Machine, is_root};

#[test]
fn a_service_of_another_user_keeps_nothing_of_root() {
    if !is_root() {
        eprintln!("skipped: only root can start a service as another user");
        return;
    }
    let machine = Machine::new();
    machine.file(
        "services.d/guest.toml",
        "exec = [\"/bin/sleep\", \"1000\"]\nuser = \"nobody:nogroup\"\n",
    );
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("guest");

    let nobody = id_of("/etc/passwd", "nobody");
    let nogroup = id_of("/etc/group", "nogroup");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| -> Vec<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        line.unwrap().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(of("Uid"), vec![nobody; 4]);
    assert_eq!(of("Gid"), vec![nogroup.clone(); 4]);
    assert!(of("Groups").iter().all(|group| *group == nogroup), "{:?}", of("Groups"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(of(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(of("NoNewPrivs"), ["1"]);
    for set in ["SigBlk", "SigIgn"] {
        assert_eq!(of(set), ["0000000000000000"], "{set}");
    }

    let mut open: Vec<(String, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), target.display().to_string())
        })
        .collect();
    open.sort();
    let numbers: Vec<_> = open.iter().map(|(number, _)| number.as_str()).collect();
    assert_eq!(numbers, ["0", "1", "2"], "{open:?}");
    assert_eq!(open[0].1, "/dev/null");
    assert!(open[1].1.starts_with("pipe:") && open[2].1.starts_with("pipe:"), "{open:?}");

    // It is not in the session of whoever brought the node up, and cannot read the node's keys.
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = session.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
    let keys = fs::metadata(machine.state().join("keys")).unwrap();
    assert_eq!(keys.mode() & 0o077, 0);
}

fn id_of(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    line.unwrap().split(':').nth(2).unwrap().to_owned()
}
