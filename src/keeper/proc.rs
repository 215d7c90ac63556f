//! What /proc says about processes that are not ours to wait for.

use std::fs;

use crate::ipc::keeper::RunName;

/// The variable by which the processes of a run are known.
pub(super) const RUN_VARIABLE: &str = "SMGR_RUN";

/// A process, as its `stat` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) session: u32,
    /// When it started, in clock ticks since boot: with `pid`, which process it is.
    pub(super) start_ticks: u64,
    pub(super) is_zombie: bool,
}

/// Returns a process, if there is one.
pub(super) fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, parentheses included.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Returns all processes, zombies included.
pub(super) fn processes() -> impl Iterator<Item = Process> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process)
}

/// Returns the children of this process, by the kernel's list or else by a scan.
pub(super) fn children() -> Vec<u32> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(list) => list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => processes().filter(|p| p.parent == std::process::id()).map(|p| p.pid).collect(),
    }
}

/// Returns the run that a process names in its environment, if it is one of `domain`.
pub(super) fn run_of_environment(pid: u32, domain: &str) -> Option<RunName> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let token = environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(RUN_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok()
    })?;
    token.strip_prefix(domain)?.strip_prefix(':')?.parse().ok()
}

/// Returns the path of a process in the unified cgroup tree.
pub(super) fn cgroup_of(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Returns the kernel's id of this boot.
pub(super) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_and_is_no_zombie() {
        let me = process(std::process::id()).unwrap();
        assert!(!me.is_zombie && me.start_ticks > 0);
        assert!(processes().any(|process| process == me));
    }
}
