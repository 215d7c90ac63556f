//! What holds the processes of a run together, however they fork: a cgroup of its own, or else its
//! session and a variable in its environment.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, inotify};
use rustix::process::Signal;

use super::exits;
use super::proc::{self, Process};
use crate::ipc::keeper::{RunName, Trees};

/// How often a tree without cgroup is searched and killed before its events are waited for.
///
/// Each pass stops what it finds before it kills, so only what was forked during a pass is left.
const KILL_PASSES: u32 = 16;

/// Finds and kills the processes of runs.
#[derive(Debug)]
pub(super) struct Forest {
    kind: Kind,
    domain: String,
}

#[derive(Debug)]
enum Kind {
    Cgroup { root: PathBuf, under: String, watch: OwnedFd, watched: BTreeMap<i32, RunName> },
    ProcessGroup,
}

/// The processes of one run that were found by a scan.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) alive: Vec<Process>,
    pub(super) zombies: Vec<Process>,
}

impl Forest {
    /// Takes the cgroup tree where it can be written, else process groups.
    ///
    /// `memory` holds the folder of an earlier keeper, which may have run in another cgroup: its
    /// runs must be found again.
    pub(super) fn find(domain: &str, memory: &Path, may_use_cgroups: bool) -> Self {
        let kind = match may_use_cgroups.then(|| cgroup(domain, memory)).flatten() {
            Some(kind) => kind,
            None => Kind::ProcessGroup,
        };
        Self { kind, domain: domain.to_owned() }
    }

    /// Returns what the agent is told.
    pub(super) fn describe(&self) -> Trees {
        match &self.kind {
            Kind::Cgroup { root, .. } => Trees::Cgroup { root: root.display().to_string() },
            Kind::ProcessGroup => Trees::ProcessGroup,
        }
    }

    /// Returns what becomes readable when a cgroup changes.
    pub(super) fn watch(&self) -> Option<&OwnedFd> {
        match &self.kind {
            Kind::Cgroup { watch, .. } => Some(watch),
            Kind::ProcessGroup => None,
        }
    }

    /// Returns the value of the variable that marks a run.
    pub(super) fn token(&self, run: &RunName) -> String {
        format!("{}:{run}", self.domain)
    }

    /// Makes the place of a run before its first process. The descriptor is its cgroup's folder.
    pub(super) fn plant(&mut self, run: &RunName) -> io::Result<Option<OwnedFd>> {
        let Kind::Cgroup { root, .. } = &mut self.kind else { return Ok(None) };
        let folder = root.join(run.as_str());
        fs::create_dir(&folder)?;
        self.watch_run(run)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(rustix::fs::open(&folder, flags, Mode::empty())?))
    }

    /// Watches the place of a run for its last process.
    pub(super) fn watch_run(&mut self, run: &RunName) -> io::Result<()> {
        let Kind::Cgroup { root, watch, watched, .. } = &mut self.kind else { return Ok(()) };
        let events = root.join(run.as_str()).join("cgroup.events");
        let id = inotify::add_watch(&*watch, events, inotify::WatchFlags::MODIFY)?;
        watched.insert(id, run.clone());
        Ok(())
    }

    /// Takes in what the watch has to say: runs whose cgroup has changed.
    pub(super) fn changed(&mut self) -> Vec<RunName> {
        let Kind::Cgroup { watch, watched, .. } = &mut self.kind else { return Vec::new() };
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&*watch, &mut buffer);
        let mut changed = Vec::new();
        while let Ok(event) = events.next() {
            if event.events().contains(inotify::ReadFlags::IGNORED) {
                watched.remove(&event.wd());
            } else if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                changed.extend(watched.values().cloned());
            } else {
                changed.extend(watched.get(&event.wd()).cloned());
            }
        }
        changed
    }

    /// Removes the place of a run that has no process any more.
    pub(super) fn clear(&mut self, run: &RunName) -> io::Result<()> {
        let Kind::Cgroup { root, .. } = &self.kind else { return Ok(()) };
        let folder = root.join(run.as_str());
        // The processes of a run may have made cgroups of their own below theirs.
        for below in fs::read_dir(&folder)?.flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&below.path())?;
            }
        }
        fs::remove_dir(folder)
    }

    /// Removes the place of all runs, if no run is left.
    pub(super) fn fell(&self) {
        if let Kind::Cgroup { root, .. } = &self.kind {
            // Fails while a run is left, as it should.
            drop(fs::remove_dir(root));
        }
    }

    /// Says whether a run has a process, and which where that had to be searched for.
    ///
    /// # Errors
    /// When it cannot be told. It has to be looked at again: nothing is concluded from it.
    pub(super) fn inhabitants(
        &self,
        run: &RunName,
        session: Option<u32>,
    ) -> io::Result<Inhabitants> {
        match &self.kind {
            Kind::Cgroup { root, .. } => {
                let path = root.join(run.as_str()).join("cgroup.events");
                match fs::read_to_string(path) {
                    Ok(text) if text.contains("populated 0") => Ok(Inhabitants::None),
                    Ok(_) => Ok(Inhabitants::Watched),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Inhabitants::None),
                    Err(error) => Err(error),
                }
            }
            Kind::ProcessGroup => Ok(match self.search(run, session)? {
                found if found.is_empty() => Inhabitants::None,
                found => Inhabitants::Found(found),
            }),
        }
    }

    /// Sends a signal to every process of a run; `KILL` reaches also those forked meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses to signal a process that exists, or the processes cannot be listed.
    pub(super) fn signal(
        &self,
        run: &RunName,
        session: Option<u32>,
        signal: Signal,
    ) -> io::Result<()> {
        let members = || match &self.kind {
            Kind::Cgroup { root, .. } => cgroup_members(&root.join(run.as_str())),
            Kind::ProcessGroup => self.search(run, session),
        };
        let send = |pids: &[u32], signal| self.send_all(run, session, pids, signal);
        if signal != Signal::KILL {
            return send(&members()?, signal);
        }
        if let Kind::Cgroup { root, .. } = &self.kind {
            match fs::write(root.join(run.as_str()).join("cgroup.kill"), "1") {
                // Before Linux 5.14 the members are read and killed in turn.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => return written,
            }
        }
        kill_in_passes(members, send)
    }

    /// Sends a signal to those of these processes that belong to a run: since they were found, a number may have
    /// passed to another.
    fn send_all(
        &self,
        run: &RunName,
        session: Option<u32>,
        pids: &[u32],
        signal: Signal,
    ) -> io::Result<()> {
        let mut sent = Ok(());
        for pid in pids {
            let one = exits::open(*pid).and_then(|pidfd| {
                let Some(process) = proc::look(*pid)? else { return Ok(()) };
                if self.belongs(&process, run, session)? {
                    rustix::process::pidfd_send_signal(&pidfd, signal)?;
                }
                Ok(())
            });
            match one {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => sent = Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        sent
    }

    /// Says whether a process is one of a run, and not of another.
    fn belongs(&self, process: &Process, run: &RunName, session: Option<u32>) -> io::Result<bool> {
        let is_of_session =
            matches!(self.kind, Kind::ProcessGroup) && Some(process.session) == session;
        Ok(is_of_session || self.run_of(process.pid)?.as_ref() == Some(run))
    }

    /// Says whether no run has a place here, and so none a process: the scan of all processes can be spared.
    pub(super) fn is_bare(&self) -> bool {
        match &self.kind {
            Kind::Cgroup { root, .. } => fs::read_dir(root).is_ok_and(|entries| {
                !entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            }),
            Kind::ProcessGroup => false,
        }
    }

    /// Finds every run that has a process or a place, in one scan.
    ///
    /// # Errors
    /// When one may have been missed.
    pub(super) fn census(&self) -> io::Result<BTreeMap<RunName, Members>> {
        let mut runs: BTreeMap<RunName, Members> = BTreeMap::new();
        if let Kind::Cgroup { root, .. } = &self.kind {
            for entry in fs::read_dir(root)? {
                let entry = entry?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Some(run) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                {
                    runs.insert(run, Members::default());
                }
            }
        }
        for process in proc::processes()? {
            let Some(run) = self.run_of(process.pid)? else { continue };
            let members = runs.entry(run).or_default();
            match process.is_zombie {
                true => members.zombies.push(process),
                false => members.alive.push(process),
            }
        }
        Ok(runs)
    }

    fn run_of(&self, pid: u32) -> io::Result<Option<RunName>> {
        match &self.kind {
            Kind::Cgroup { under, .. } => {
                let path = proc::cgroup_of(&pid.to_string())?;
                Ok(path.and_then(|path| run_below(&path, under)))
            }
            Kind::ProcessGroup => proc::run_of_environment(pid, &self.domain),
        }
    }

    /// Finds the living processes of a run without cgroup: those of the main process's session, and
    /// those that carry the run's mark.
    fn search(&self, run: &RunName, session: Option<u32>) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for process in proc::processes()? {
            if !process.is_zombie && self.belongs(&process, run, session)? {
                found.push(process.pid);
            }
        }
        Ok(found)
    }
}

/// Reads from a cgroup's path which run's place it is in.
fn run_below(path: &str, under: &str) -> Option<RunName> {
    // A zombie names its place for as long as it is kept; a place that was removed is a run that was told and
    // acknowledged.
    let below = path.strip_prefix(under)?.strip_prefix('/')?;
    let below = Some(below).filter(|below| !below.ends_with(" (deleted)"))?;
    below.split('/').next()?.parse().ok()
}

/// Kills what is found until nothing is, at most [`KILL_PASSES`] times.
fn kill_in_passes(
    members: impl Fn() -> io::Result<Vec<u32>>,
    mut send: impl FnMut(&[u32], Signal) -> io::Result<()>,
) -> io::Result<()> {
    let mut killed = Ok(());
    for _ in 0..KILL_PASSES {
        let found = members()?;
        if found.is_empty() {
            return Ok(());
        }
        // Whoever cannot be stopped may be killed all the same; only this one counts.
        drop(send(&found, Signal::STOP));
        killed = send(&found, Signal::KILL);
    }
    killed
}

/// Who lives in a run's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inhabitants {
    /// Nobody.
    None,
    /// Somebody, and the watch will tell when not.
    Watched,
    /// These, whose ends have to be waited for.
    Found(Vec<u32>),
}

fn cgroup_members(folder: &Path) -> io::Result<Vec<u32>> {
    match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for below in fs::read_dir(folder)?.flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&below.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Finds or makes the folder of all runs; `None` where there is no cgroup2 that can be written.
fn cgroup(domain: &str, memory: &Path) -> Option<Kind> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })?;
    let name = format!("smgr-{domain}");
    let remembered = fs::read_to_string(memory).ok().map(|path| PathBuf::from(path.trim()));
    let remembered = remembered.filter(|path| path.starts_with(&mount) && path.ends_with(&name));
    let own = proc::cgroup_of("self").ok().flatten()?;
    let fresh = mount.join(own.trim_start_matches('/')).join(&name);
    let root = remembered.clone().filter(|path| path.is_dir()).unwrap_or(fresh);
    match fs::create_dir(&root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        Ok(()) | Err(_) => {}
    }
    // A folder that can be made but takes no process would fail at the first spawn.
    rustix::fs::access(root.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).ok()?;
    if remembered.as_ref() != Some(&root)
        && let Err(error) = fs::write(memory, root.as_os_str().as_encoded_bytes())
    {
        // A keeper that is moved to another cgroup would not find the runs of this one.
        tracing::warn!(%error, "failed to note the cgroup of the runs");
    }
    let watch =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let under = format!("/{}", root.strip_prefix(&mount).ok()?.display());
    Some(Kind::Cgroup { root, under, watch, watched: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_cannot_be_stopped_is_killed_all_the_same() {
        let mut killed = Vec::new();
        let alive = std::cell::Cell::new(true);
        let members = || Ok(if alive.get() { vec![4, 5] } else { Vec::new() });
        let done = kill_in_passes(members, |pids, signal| match signal {
            Signal::STOP => Err(rustix::io::Errno::PERM.into()),
            _ => {
                killed.extend_from_slice(pids);
                alive.set(false);
                Ok(())
            }
        });
        assert!(done.is_ok());
        assert_eq!(killed, [4, 5]);
    }

    #[test]
    fn a_number_that_passed_to_another_is_not_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let forest = Forest::find("0", &folder.path().join("cgroup"), false);
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        forest.send_all(&"web.0.1".parse().unwrap(), None, &[stranger.id()], Signal::KILL).unwrap();
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        assert!(stranger.wait().unwrap().code().is_none());
    }
}
