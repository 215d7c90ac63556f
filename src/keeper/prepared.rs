//! A program laid out for the child: every string and array that its system calls will read.

use std::cell::UnsafeCell;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use crate::domain::spec::SOCKETS_MAX;
use crate::ipc::hello::Before;
use crate::ipc::keeper::{Account, Limit, Resource, Spawn};
use crate::ipc::listen::SOCKETS_FROM;

/// The variable that says for which process the sockets are.
pub(super) const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// The variable with the longest number, and a zero byte.
const LISTEN_PID_BYTES: usize = LISTEN_PID.len() + 21;

/// The most groups that one user may have here; the kernel allows more than anyone has.
const GROUPS_MAX: usize = 1024;

/// A program and all that surrounds it.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Where it may be, in the order of trying.
    pub(super) programs: Vec<CString>,
    /// Pointers into `texts`, with a null at the end.
    pub(super) argv: Vec<*const c_char>,
    /// Pointers into `texts`, with a null at the end.
    pub(super) env: Vec<*const c_char>,
    pub(super) working_dir: CString,
    pub(super) account: Option<Account>,
    pub(super) umask: u32,
    pub(super) limits: Vec<(c_int, libc::rlimit64)>,
    pub(super) oom_score: Vec<u8>,
    pub(super) no_new_privileges: bool,
    /// `LISTEN_PID=`, behind which the child writes its own number; `env` points at it.
    pub(super) listen_pid: Option<Box<UnsafeCell<[u8; LISTEN_PID_BYTES]>>>,
    /// Owns what `argv` and `env` point at. Never changed: a `CString` keeps its address.
    _texts: Vec<CString>,
}

/// Says why a request is no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unprepared {
    #[error("argv is empty")]
    NoProgram,
    #[error("{0} holds a zero byte")]
    ZeroByte(&'static str),
    #[error("an environment variable has no name, or a name with `=`")]
    VariableName,
    #[error("the working directory is not absolute")]
    RelativeDirectory,
    #[error("oom_score_adjust is not within -1000 to 1000")]
    OomScore,
    #[error("more than {GROUPS_MAX} supplementary groups")]
    Groups,
    #[error("more than {SOCKETS_MAX} sockets")]
    Sockets,
    #[error("the readiness descriptor is not within 3 to 1023, or is the place of a socket")]
    ReadyFd,
    #[error("a signal or umask is out of range")]
    Umask,
}

impl Prepared {
    /// Lays out a request. `added` are variables of the keeper's own; `files` is the limit of open
    /// descriptors that holds when the request names none.
    pub(super) fn of(
        spawn: &Spawn,
        added: &[(&str, String)],
        files: libc::rlimit64,
    ) -> Result<Self, Unprepared> {
        if !spawn.working_dir.starts_with('/') {
            return Err(Unprepared::RelativeDirectory);
        }
        if !(-1000..=1000).contains(&spawn.oom_score_adjust) {
            return Err(Unprepared::OomScore);
        }
        if spawn.account.as_ref().is_some_and(|account| account.groups.len() > GROUPS_MAX) {
            return Err(Unprepared::Groups);
        }
        let after_sockets =
            SOCKETS_FROM + u32::try_from(spawn.sockets.len()).unwrap_or(u32::MAX - 3);
        if spawn.sockets.len() > SOCKETS_MAX {
            return Err(Unprepared::Sockets);
        }
        if spawn.ready_fd.is_some_and(|fd| !(after_sockets..=1023).contains(&fd)) {
            return Err(Unprepared::ReadyFd);
        }
        if spawn.umask > 0o777 {
            return Err(Unprepared::Umask);
        }
        let program = spawn.argv.first().filter(|text| !text.is_empty());
        let programs = places(program.ok_or(Unprepared::NoProgram)?, &spawn.env)?;
        let mut texts = Vec::with_capacity(spawn.argv.len() + spawn.env.len() + added.len());
        for argument in &spawn.argv {
            texts.push(text("an argument", argument.as_bytes())?);
        }
        let given = spawn.env.iter().map(|(name, value)| (name.as_str(), value));
        let ours = added.iter().map(|(name, value)| (*name, value));
        let is_ours = |name: &str| added.iter().any(|(ours, _)| *ours == name);
        for (name, value) in given.filter(|(name, _)| !is_ours(name)).chain(ours) {
            if name.is_empty() || name.contains('=') {
                return Err(Unprepared::VariableName);
            }
            texts.push(text("the environment", format!("{name}={value}").as_bytes())?);
        }
        let (mut env, mut listen_pid) = (pointers(&texts[spawn.argv.len()..]), None);
        if !spawn.sockets.is_empty() {
            let mut text = [0; LISTEN_PID_BYTES];
            text[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
            let text = listen_pid.insert(Box::new(UnsafeCell::new(text)));
            // Before the null at the end.
            env.insert(env.len() - 1, text.get().cast::<c_char>().cast_const());
        }
        let mut limits = vec![(libc::RLIMIT_NOFILE as c_int, files)];
        limits.extend(spawn.limits.iter().map(rlimit));
        Ok(Self {
            programs,
            argv: pointers(&texts[..spawn.argv.len()]),
            env,
            listen_pid,
            working_dir: text("the working directory", spawn.working_dir.as_bytes())?,
            account: spawn.account.clone(),
            umask: spawn.umask,
            limits,
            oom_score: spawn.oom_score_adjust.to_string().into_bytes(),
            no_new_privileges: spawn.no_new_privileges,
            _texts: texts,
        })
    }

    /// Lays out a part of this node: this process's own environment, folder and limits, and how its life before ended.
    pub(super) fn part(
        command: &[std::ffi::OsString],
        before: Option<Before>,
        account: Option<Account>,
        oom_score: i32,
        files: libc::rlimit64,
    ) -> Result<Self, Unprepared> {
        let program = command.first().ok_or(Unprepared::NoProgram)?;
        let mut texts = Vec::new();
        for argument in command {
            texts.push(text("an argument", argument.as_bytes())?);
        }
        let told = before.map(|before| (Before::VARIABLE.into(), before.text().into()));
        // What this process was told of itself is not for its children.
        let own = std::env::vars_os().filter(|(name, _)| name != Before::VARIABLE);
        for (name, value) in own.chain(told) {
            let variable = [name.as_bytes(), b"=", value.as_bytes()].concat();
            texts.push(text("the environment", &variable)?);
        }
        Ok(Self {
            programs: vec![text("the program", program.as_bytes())?],
            argv: pointers(&texts[..command.len()]),
            env: pointers(&texts[command.len()..]),
            listen_pid: None,
            working_dir: c"/".to_owned(),
            account,
            umask: 0o077,
            limits: vec![(libc::RLIMIT_NOFILE as c_int, files)],
            oom_score: oom_score.to_string().into_bytes(),
            no_new_privileges: true,
            _texts: texts,
        })
    }
}

fn text(what: &'static str, bytes: &[u8]) -> Result<CString, Unprepared> {
    CString::new(bytes).map_err(|_| Unprepared::ZeroByte(what))
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Returns where a program may be: itself if it is a path, else in each folder of `PATH`.
fn places(program: &str, env: &[(String, String)]) -> Result<Vec<CString>, Unprepared> {
    if program.contains('/') {
        return Ok(vec![text("the program", program.as_bytes())?]);
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
    // An empty or relative folder would make the working directory a place for programs.
    let folders = path.unwrap_or("/usr/local/bin:/usr/bin:/bin").split(':');
    let places = folders.filter(|folder| folder.starts_with('/'));
    places.map(|folder| text("PATH", format!("{folder}/{program}").as_bytes())).collect()
}

fn rlimit(limit: &Limit) -> (c_int, libc::rlimit64) {
    let resource = match limit.resource {
        Resource::Files => libc::RLIMIT_NOFILE,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        Resource::AddressSpace => libc::RLIMIT_AS,
    };
    (resource as c_int, libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard })
}
