//! Archives as others may make them.

use super::*;

/// One entry as its header says it.
#[derive(Clone)]
struct Entry<'a> {
    name: &'a str,
    kind: u8,
    link: &'a str,
    content: &'a [u8],
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { name, kind: b'0', link: "", content }
}

fn of_kind<'a>(name: &'a str, kind: u8, link: &'a str) -> Entry<'a> {
    Entry { name, kind, link, content: b"" }
}

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut block = [0; BLOCK];
        block[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[124..135].copy_from_slice(format!("{:011o}", entry.content.len()).as_bytes());
        block[156] = entry.kind;
        block[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(block);
        bytes.extend(entry.content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

fn unpacked(entries: &[Entry<'_>]) -> Result<tempfile::TempDir, UnpackError> {
    let folder = tempfile::tempdir().unwrap();
    unpack(&tar(entries)[..], folder.path(), LIMITS).map(|_| folder)
}

#[test]
fn files_folders_and_links_inside_are_unpacked() {
    let folder = unpacked(&[
        of_kind("./", b'5', ""),
        of_kind("bin/", b'5', ""),
        file("bin/web", b"program"),
        of_kind("bin/www", b'2', "web"),
        of_kind("lib/deep/self", b'2', "../../bin/web"),
        of_kind("bin/same", b'1', "bin/web"),
    ])
    .unwrap();
    for name in ["bin/web", "bin/www", "lib/deep/self", "bin/same"] {
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"program", "{name}");
    }
    let mode = fs::metadata(folder.path().join("bin/web")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn whatever_leads_out_or_is_no_file_is_refused() {
    let web = || file("web", b"x");
    for (what, entries) in [
        ("an absolute path", vec![file("/etc/passwd", b"x")]),
        ("a path that climbs", vec![file("a/../../etc/passwd", b"x")]),
        ("an absolute link", vec![of_kind("a", b'2', "/etc/passwd")]),
        ("a link that climbs", vec![of_kind("a/b", b'2', "../../x")]),
        (
            "a link that climbs behind another",
            vec![of_kind("a/b/l", b'2', "../.."), of_kind("m", b'2', "a/b/l/..")],
        ),
        ("a file behind a link", vec![of_kind("a", b'2', "b"), file("a/x", b"x")]),
        ("a file behind a file", vec![web(), file("web/x", b"x")]),
        ("a hard link out", vec![of_kind("a", b'1', "../../etc/passwd")]),
        ("a hard link to a link", vec![web(), of_kind("l", b'2', "web"), of_kind("a", b'1', "l")]),
        ("a character device", vec![of_kind("null", b'3', "")]),
        ("a block device", vec![of_kind("sda", b'4', "")]),
        ("a FIFO", vec![of_kind("pipe", b'6', "")]),
        ("a sparse file", vec![of_kind("hole", b'S', "")]),
        ("one name twice", vec![web(), web()]),
        ("a link over a file", vec![web(), of_kind("web", b'2', "x")]),
        ("nothing", vec![]),
    ] {
        assert!(unpacked(&entries).is_err(), "{what} was taken");
    }
}

#[test]
fn too_much_is_refused_before_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_max: 10, entries_max: 2 };
    let big = tar(&[file("a", b"0123456789a")]);
    assert!(matches!(unpack(&big[..], folder.path(), limits), Err(UnpackError::TooMuch(_))));
    assert!(!folder.path().join("a").exists());
    for many in [vec![file("a", b""), file("b", b""), file("c", b"")], vec![file("d/e/f", b"")]] {
        let folder = tempfile::tempdir().unwrap();
        let many = unpack(&tar(&many)[..], folder.path(), limits);
        assert!(matches!(many, Err(UnpackError::TooMuch(_))), "{many:?}");
    }
    let endless = tar(&vec![of_kind("comment", b'g', ""); 2 * 64 + 1]);
    let endless = unpack(&endless[..], folder.path(), limits);
    assert!(matches!(endless, Err(UnpackError::TooMuch(_))), "{endless:?}");
}

#[test]
fn an_archive_that_is_cut_or_changed_anywhere_gives_an_error_and_no_panic() {
    let whole = tar(&[file("bin/web", b"program"), of_kind("www", b'2', "bin/web")]);
    for len in 0..whole.len() - 2 * BLOCK {
        let folder = tempfile::tempdir().unwrap();
        assert!(unpack(&whole[..len], folder.path(), LIMITS).is_err(), "cut at {len}");
    }
    for at in (0..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        let folder = tempfile::tempdir().unwrap();
        drop(unpack(&changed[..], folder.path(), LIMITS));
    }
}

#[test]
fn long_names_come_in_records() {
    let long = format!("{}/file", "d".repeat(120));
    let pax = format!("{} path={long}\n", long.len() + 10);
    assert_eq!(pax.len(), long.len() + 10);
    let next = || file("short", b"x");
    let record = |kind, content| Entry { name: "record", kind, link: "", content };
    for entries in
        [vec![record(b'x', pax.as_bytes()), next()], vec![record(b'L', long.as_bytes()), next()]]
    {
        let folder = unpacked(&entries).unwrap();
        assert!(folder.path().join(&long).is_file());
    }
    let out = record(b'L', b"../out");
    assert!(unpacked(&[out, next()]).is_err());
}
