//! A keeper in a state folder of its own, and the agent that a test is.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_bytes::ByteBuf;
use smgr::ipc::frame::Packet;
use smgr::ipc::hello::{Hello, Incarnation, Part};
use smgr::ipc::keeper::{
    Answer, Channel, Claim, Exit, Fact, FactNumber, FromKeeper, OperationNumber, RunName, RunState,
    SlotName, Spawn, ToKeeper, Trees, Verb, What,
};
use smgr::ipc::place::{PartLock, Place};
use smgr::ipc::socket::{self, Inbox, SocketError};

use crate::support::process::signal;
use crate::support::sweep::sweep;
use crate::support::wait::{PATIENCE, eventually, wait_until};

/// Starts the launcher, which starts the keeper.
pub(super) const LAUNCHER: &str = "launcher";

pub(super) struct Rig {
    pub(super) state: tempfile::TempDir,
    pub(super) place: Place,
    pub(super) lock: Option<PartLock>,
    pub(super) arguments: Vec<String>,
    pub(super) child: Child,
}

impl Rig {
    pub(super) fn start(arguments: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let place = Place::of(state.path());
        place.create().unwrap();
        let lock = Some(place.lock(Part::Agent).unwrap());
        let mut arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        match arguments.iter().position(|argument| argument == LAUNCHER) {
            // What runs without a part is the launcher.
            Some(at) => drop(arguments.remove(at)),
            None => arguments.extend(["--part".to_owned(), "keeper".to_owned()]),
        }
        let child = start(state.path(), &arguments);
        Self { state, place, lock, arguments, child }
    }

    pub(super) fn restart(&mut self) {
        self.child = start(self.state.path(), &self.arguments);
    }

    pub(super) fn agent(&self) -> Agent {
        self.agent_of(Incarnation::draw())
    }

    pub(super) fn agent_of(&self, incarnation: Incarnation) -> Agent {
        let mut agent = Agent::dial(self, incarnation);
        agent.welcome();
        agent
    }

    pub(super) fn keeper_pid(&self) -> u32 {
        let mut pid = None;
        // It takes its lock first and writes its number then.
        wait_until("a keeper lives", || {
            let is_locked = self.place.is_locked(Part::Keeper).unwrap();
            pid = self.place.pid(Part::Keeper).filter(|_| is_locked);
            pid.is_some()
        });
        pid.expect("it was waited for")
    }

    /// Returns the start of a shell whose working directory is the state folder.
    pub(super) fn sh(&self, name: &str, script: &str) -> Spawn {
        Spawn { working_dir: self.state.path().display().to_string(), ..sh(name, script) }
    }

    pub(super) fn kill_keeper(&self) {
        let keeper = self.keeper_pid();
        signal(keeper, Signal::KILL);
        self.wait_for_keeper_after(keeper);
    }

    pub(super) fn wait_for_keeper_after(&self, dead: u32) {
        wait_until("another keeper lives", || {
            self.place.is_locked(Part::Keeper).unwrap()
                && self.place.pid(Part::Keeper).is_some_and(|pid| pid != dead)
        });
    }

    /// Counts the living processes that carry a run's mark.
    pub(super) fn processes(&self, run: &str) -> usize {
        self.marked().iter().filter(|(_, of)| of == run).count()
    }

    pub(super) fn marked(&self) -> Vec<(u32, String)> {
        let domain = self.place.folder_of(Part::Keeper).join("domain");
        let Ok(domain) = fs::read_to_string(domain) else { return Vec::new() };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let mark = format!("SMGR_RUN={domain}:");
            let of = environment.split('\0').find_map(|text| text.strip_prefix(&mark))?;
            Some((pid, of.to_owned()))
        })
        .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The launcher first, so that no keeper comes back.
        drop(self.child.kill());
        drop(self.child.wait());
        if self.place.is_locked(Part::Keeper).unwrap_or(false)
            && let Some(keeper) = self.place.pid(Part::Keeper)
        {
            signal(keeper, Signal::KILL);
        }
        for (pid, _) in self.marked() {
            signal(pid, Signal::KILL);
        }
        sweep(self.state.path());
    }
}

pub(super) struct Agent {
    pub(super) socket: OwnedFd,
    pub(super) inbox: Inbox,
    pub(super) incarnation: Incarnation,
    pub(super) trees: Trees,
    pub(super) last: u64,
    pub(super) facts: Vec<Fact>,
    pub(super) answers: VecDeque<(OperationNumber, Answer, Vec<OwnedFd>)>,
}

impl Agent {
    /// Connects and says hello.
    pub(super) fn dial(rig: &Rig, incarnation: Incarnation) -> Self {
        let path = rig.place.keeper_socket();
        let socket = eventually("the keeper listens", || socket::connect(&path).ok());
        let agent = Self {
            socket,
            inbox: Inbox::default(),
            incarnation,
            trees: Trees::ProcessGroup,
            last: 0,
            facts: Vec::new(),
            answers: VecDeque::new(),
        };
        agent.send(&ToKeeper::Hello(Hello::of(Part::Agent, incarnation)));
        agent
    }

    /// Takes the keeper's hello.
    pub(super) fn welcome(&mut self) {
        match self.receive().unwrap() {
            (FromKeeper::Hello { trees, .. }, _) => self.trees = trees,
            (other, _) => panic!("{other:?}"),
        }
    }

    pub(super) fn send(&self, message: &ToKeeper) {
        socket::send(&self.socket, &Packet::new(message).unwrap()).unwrap();
    }

    pub(super) fn receive(&mut self) -> Result<(FromKeeper, Vec<OwnedFd>), SocketError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.inbox.receive(&self.socket) {
                Ok(received) => return Ok((received.message, received.descriptors)),
                Err(error) if error.would_block() => {
                    assert!(Instant::now() < until, "the keeper is silent; {:#?}", self.facts);
                    socket::wait_readable(self.socket.as_fd(), PATIENCE).unwrap();
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn turn(&mut self) {
        match self.receive().unwrap() {
            (FromKeeper::Fact(fact), _) => self.facts.push(fact),
            (FromKeeper::Answer { number, answer }, descriptors) => {
                self.answers.push_back((number, answer, descriptors));
            }
            (FromKeeper::Shutdown(_), _) => {}
            (other @ FromKeeper::Hello { .. }, _) => panic!("{other:?}"),
        }
    }

    pub(super) fn operate(&mut self, verb: Verb) -> (Answer, Vec<OwnedFd>) {
        self.operate_with(verb, vec![])
    }

    pub(super) fn operate_with(
        &mut self,
        verb: Verb,
        descriptors: Vec<OwnedFd>,
    ) -> (Answer, Vec<OwnedFd>) {
        self.last += 1;
        let number = OperationNumber(self.last);
        let message = ToKeeper::Operate { number, verb };
        let packet = Packet::with_descriptors(&message, descriptors).unwrap();
        socket::send(&self.socket, &packet).unwrap();
        while self.answers.is_empty() {
            self.turn();
        }
        let (answered, answer, descriptors) = self.answers.pop_front().unwrap();
        assert_eq!(answered, number);
        (answer, descriptors)
    }

    pub(super) fn spawn(&mut self, spawn: Spawn) -> (u32, Vec<(Channel, OwnedFd)>) {
        let (answer, mut descriptors) = self.operate(Verb::Spawn(Box::new(spawn)));
        let Answer::Spawned { pid, channels, .. } = answer else { panic!("{answer:?}") };
        descriptors.remove(0);
        (pid, channels.into_iter().zip(descriptors).collect())
    }

    pub(super) fn take(&mut self, slot: &str) -> Vec<(Channel, OwnedFd)> {
        let slot: SlotName = slot.parse().unwrap();
        let (answer, descriptors) = self.operate(Verb::TakeDescriptors { slot });
        let Answer::Descriptors { channels, .. } = answer else { panic!("{answer:?}") };
        channels.into_iter().zip(descriptors).collect()
    }

    pub(super) fn give(
        &mut self,
        slot: &str,
        given: Vec<(Channel, OwnedFd)>,
        runs: Vec<(Claim, OwnedFd)>,
    ) {
        let (channels, mut descriptors): (Vec<_>, Vec<_>) = given.into_iter().unzip();
        let (runs, pidfds): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
        descriptors.extend(pidfds);
        let verb = Verb::GiveDescriptors { slot: slot.parse().unwrap(), channels, runs };
        assert_eq!(self.operate_with(verb, descriptors).0, Answer::Done);
    }

    pub(super) fn list(&mut self) -> Vec<RunState> {
        let (answer, _) = self.operate(Verb::List { after: None });
        let Answer::Runs { runs, more: false } = answer else { panic!("{answer:?}") };
        runs
    }

    pub(super) fn acknowledge(&mut self, through: FactNumber) {
        assert_eq!(self.operate(Verb::Acknowledge { through }).0, Answer::Done);
    }

    pub(super) fn fact(&mut self, name: &str, wanted: impl Fn(&What) -> bool) -> Fact {
        loop {
            let found = self.facts.iter().find(|f| f.run == run(name) && wanted(&f.what));
            if let Some(fact) = found {
                return fact.clone();
            }
            self.turn();
        }
    }

    pub(super) fn exit(&mut self, name: &str) -> Exit {
        let fact = self.fact(name, |what| matches!(what, What::Exited { .. }));
        let What::Exited { exit, .. } = fact.what else { panic!("{fact:?}") };
        exit
    }

    pub(super) fn tree_gone(&mut self, name: &str) -> Fact {
        self.fact(name, |what| matches!(what, What::TreeGone))
    }
}

pub(super) fn in_both_modes(test: impl Fn(&Rig)) {
    test(&Rig::start(&[]));
    test(&Rig::start(&["--no-cgroups"]));
}

pub(super) fn in_both_modes_launched(test: impl Fn(&Rig)) {
    test(&Rig::start(&[LAUNCHER]));
    test(&Rig::start(&[LAUNCHER, "--no-cgroups"]));
}

pub(super) fn start(state: &Path, arguments: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_smgr"))
        .args(["agent", "--alone", "--state"])
        .arg(state)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

pub(super) fn run(name: &str) -> RunName {
    name.parse().unwrap()
}

/// A shell as run `name` of slot `a.0`.
pub(super) fn sh(name: &str, script: &str) -> Spawn {
    Spawn {
        run: run(name),
        slot: "a.0".parse().unwrap(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
        working_dir: "/".to_owned(),
        account: None,
        umask: 0o022,
        limits: vec![],
        oom_score_adjust: 0,
        no_new_privileges: true,
        notify: false,
        ready_fd: None,
        sockets: Vec::new(),
        is_errand: false,
        memo: ByteBuf::from(*b"memo"),
    }
}

/// Reads a channel to the end of the line that holds `text`.
pub(super) fn read_until(channel: &OwnedFd, text: &str) -> String {
    let mut file = File::from(channel.try_clone().unwrap());
    let mut got = Vec::new();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut buffer = [0; 65_536];
        match file.read(&mut buffer) {
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                socket::wait_readable(channel.as_fd(), Duration::from_millis(100)).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        let so_far = String::from_utf8_lossy(&got);
        if so_far.ends_with('\n') && so_far.contains(text) {
            return so_far.into_owned();
        }
        assert!(Instant::now() < until, "no {text:?} in {so_far:?}");
    }
}

/// Linux 6.15 and later tell the exit of a process that was reaped by another.
pub(super) fn kernel_tells_exits() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').filter_map(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}
