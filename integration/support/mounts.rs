//! A test that mounts: it runs once more in a process whose mounts end with it.

use std::process::Command;

/// Set in the copy of this program that has mounts of its own.
const OWN: &str = "SMGR_TEST_OWN_MOUNTS";

/// Says whether this process has mounts of its own.
pub(crate) fn has_own() -> bool {
    std::env::var_os(OWN).is_some()
}

/// Runs one test of this program again where its mounts end with it.
pub(crate) fn again_with_own(module: &str, test: &str) {
    let path = format!("{}::{test}", module.split_once("::").unwrap().1);
    let ran = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args([&path, "--exact", "--nocapture"])
        .env(OWN, "1")
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}
