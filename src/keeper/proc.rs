//! What /proc says about processes that are not ours to wait for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::ipc::hello::Part;
use crate::ipc::keeper::RunName;
use crate::ipc::place::Place;

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
///
/// # Errors
/// When it cannot be told, as without a descriptor to read with.
pub(super) fn look(pid: u32) -> io::Result<Option<Process>> {
    Ok(of_living(fs::read_to_string(format!("/proc/{pid}/stat")))?
        .and_then(|stat| parse(pid, &stat)))
}

/// Returns a process, if there is one that can be seen.
pub(super) fn process(pid: u32) -> Option<Process> {
    look(pid).ok().flatten()
}

fn parse(pid: u32, stat: &str) -> Option<Process> {
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

/// Returns when a process began, in nanoseconds since boot; exact to a tick.
pub(super) fn began_ns(pid: u32) -> Option<u64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(process(pid)?.start_ticks.saturating_mul(1_000_000_000 / ticks_per_second))
}

/// Takes a file that is missing for a process that is gone, and one that is hidden for another's; any other failure
/// says nothing about the process.
fn of_living<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns all processes, zombies included.
///
/// # Errors
/// When one may be missing: no process is concluded to be gone from such a list.
pub(super) fn processes() -> io::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            all.extend(look(pid)?);
        }
    }
    Ok(all)
}

/// Returns the children of this process, by the kernel's list or else by a scan.
pub(super) fn children() -> Vec<u32> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(list) => list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        // Whoever is missed is reaped at another time.
        Err(_) => processes()
            .unwrap_or_default()
            .into_iter()
            .filter(|process| process.parent == std::process::id())
            .map(|process| process.pid)
            .collect(),
    }
}

/// Returns the run that a process names in its environment, if it is one of `domain`.
///
/// # Errors
/// When it cannot be told; a process that hides its environment names none.
pub(super) fn run_of_environment(pid: u32, domain: &str) -> io::Result<Option<RunName>> {
    let environment = of_living(fs::read(format!("/proc/{pid}/environ")))?;
    Ok(environment.and_then(|environment| run_in(&environment, domain)))
}

fn run_in(environment: &[u8], domain: &str) -> Option<RunName> {
    let token = environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(RUN_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok()
    })?;
    token.strip_prefix(domain)?.strip_prefix(':')?.parse().ok()
}

/// Returns the runs of a state folder that have a living process, whether a keeper looks after them or not.
///
/// # Errors
/// When it cannot be told, as where the folder belongs to another user. One in which nothing ever ran is none of these.
pub fn living_runs(state: &Path) -> io::Result<BTreeSet<RunName>> {
    let domain = match fs::read_to_string(Place::of(state).folder_of(Part::Keeper).join("domain")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        domain => domain?,
    };
    let alive = processes()?.into_iter().filter(|process| !process.is_zombie);
    let runs = alive.map(|process| run_of_environment(process.pid, domain.trim()));
    runs.filter_map(Result::transpose).collect()
}

/// Returns the path of a process in the unified cgroup tree.
///
/// # Errors
/// When it cannot be told.
pub(super) fn cgroup_of(pid: &str) -> io::Result<Option<String>> {
    let text = of_living(fs::read_to_string(format!("/proc/{pid}/cgroup")))?;
    let path =
        |text: String| text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
    Ok(text.and_then(path))
}

/// Returns the user of a process, when it has only one: none of its ids is another's.
pub(super) fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut ids = line.split_ascii_whitespace().map(str::parse::<u32>);
    let first = ids.next()?.ok()?;
    ids.all(|id| id == Ok(first)).then_some(first)
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
        assert!(processes().unwrap().contains(&me));
        assert_eq!(user_of(me.pid), Some(rustix::process::geteuid().as_raw()));
    }
}
