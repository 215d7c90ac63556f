//! The processes of this machine, by their numbers.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Sends a signal. That the process is gone already is no failure.
pub(crate) fn signal(pid: u32, signal: Signal) {
    match kill_process(as_pid(pid), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("process {pid}: {error}"),
    }
}

pub(crate) fn kill_9(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Returns the letter that the kernel gives for what a process does; `None` when there is none of that number.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns whose child a process is.
pub(crate) fn process_parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Lists the processes that have `needle` in their command line.
pub(crate) fn processes_with(needle: &str) -> Vec<(u32, String)> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(needle).then_some((pid, line))
    })
    .collect()
}
