//! What holds the processes of a run together, however they fork: a cgroup of its own, or else its
//! session and a variable in its environment.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, inotify};
use rustix::process::{PidfdFlags, Signal};

use super::exits::as_pid;
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
    /// When the cgroup is gone.
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
            Kind::ProcessGroup => Ok(match self.search(run, session) {
                found if found.is_empty() => Inhabitants::None,
                found => Inhabitants::Found(found.into_iter().map(|p| p.pid).collect()),
            }),
        }
    }

    /// Sends a signal to every process of a run; `KILL` reaches also those forked meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses to signal a process that exists.
    pub(super) fn signal(
        &self,
        run: &RunName,
        session: Option<u32>,
        signal: Signal,
    ) -> io::Result<()> {
        match &self.kind {
            Kind::Cgroup { root, .. } if signal == Signal::KILL => {
                let folder = root.join(run.as_str());
                match fs::write(folder.join("cgroup.kill"), "1") {
                    // Before Linux 5.14 the members are read and killed in turn.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.kill_in_passes(|| cgroup_members(&folder))
                    }
                    written => written,
                }
            }
            Kind::Cgroup { root, .. } => send_all(cgroup_members(&root.join(run.as_str())), signal),
            Kind::ProcessGroup if signal == Signal::KILL => {
                self.kill_in_passes(|| pids(self.search(run, session)))
            }
            Kind::ProcessGroup => send_all(pids(self.search(run, session)), signal),
        }
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
    pub(super) fn census(&self) -> BTreeMap<RunName, Members> {
        let mut runs: BTreeMap<RunName, Members> = BTreeMap::new();
        if let Kind::Cgroup { root, .. } = &self.kind {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Some(run) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                {
                    runs.insert(run, Members::default());
                }
            }
        }
        for process in proc::processes() {
            let Some(run) = self.run_of(process.pid) else { continue };
            let members = runs.entry(run).or_default();
            match process.is_zombie {
                true => members.zombies.push(process),
                false => members.alive.push(process),
            }
        }
        runs
    }

    fn run_of(&self, pid: u32) -> Option<RunName> {
        match &self.kind {
            Kind::Cgroup { under, .. } => {
                let path = proc::cgroup_of(&pid.to_string())?;
                // A zombie names its place for as long as it is kept; a place that was removed is a run that was told
                // and acknowledged.
                let below = path.strip_prefix(under.as_str())?.strip_prefix('/')?;
                let below = Some(below).filter(|below| !below.ends_with(" (deleted)"))?;
                below.split('/').next()?.parse().ok()
            }
            Kind::ProcessGroup => proc::run_of_environment(pid, &self.domain),
        }
    }

    /// Finds the living processes of a run without cgroup: those of the main process's session, and
    /// those that carry the run's mark.
    fn search(&self, run: &RunName, session: Option<u32>) -> Vec<Process> {
        let living = proc::processes().filter(|process| !process.is_zombie);
        let belongs = |process: &Process| {
            Some(process.session) == session
                || proc::run_of_environment(process.pid, &self.domain).as_ref() == Some(run)
        };
        living.filter(belongs).collect()
    }

    fn kill_in_passes(&self, members: impl Fn() -> Vec<u32>) -> io::Result<()> {
        for _ in 0..KILL_PASSES {
            let found = members();
            if found.is_empty() {
                break;
            }
            send_all(found.clone(), Signal::STOP)?;
            send_all(found, Signal::KILL)?;
        }
        Ok(())
    }
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

fn pids(processes: Vec<Process>) -> Vec<u32> {
    processes.into_iter().map(|process| process.pid).collect()
}

fn send_all(pids: Vec<u32>, signal: Signal) -> io::Result<()> {
    let mut refused = Ok(());
    for pid in pids {
        let sent = rustix::process::pidfd_open(as_pid(pid), PidfdFlags::empty())
            .and_then(|pidfd| rustix::process::pidfd_send_signal(pidfd, signal));
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => refused = Err(errno.into()),
        }
    }
    refused
}

fn cgroup_members(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
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
    let own = proc::cgroup_of("self")?;
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
