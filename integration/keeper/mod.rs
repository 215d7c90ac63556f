//! The keeper with real processes: this test is its agent.

mod rig;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_bytes::ByteBuf;
use smgr::ipc::hello::Incarnation;
use smgr::ipc::keeper::{
    Account, Answer, Channel, Claim, Exit, FactNumber, FromKeeper, Limit, OperationNumber, Refusal,
    Resource, Spawn, Step, Target, ToKeeper, Trees, Verb, What,
};
use smgr::ipc::socket::{self, Inbox, SocketError};

use rig::{
    LAUNCHER, Rig, in_both_modes, in_both_modes_launched, kernel_tells_exits, read_until, run, sh,
};

use crate::support::process::{as_pid, process_state, signal};
use crate::support::wait::{PATIENCE, wait_until};

#[test]
fn an_exit_code_and_a_signal_are_told_apart() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        agent.spawn(sh("a.0.1", "exit 7"));
        assert_eq!(agent.exit("a.0.1"), Exit::Code(7));
        agent.spawn(sh("a.0.2", "kill -TERM $$"));
        assert_eq!(agent.exit("a.0.2"), Exit::Signal { signal: 15, core: false });
        agent.tree_gone("a.0.2");
    });
}

#[test]
fn the_runs_are_listed_behind_all_facts_however_soon_the_agent_asks() {
    let rig = Rig::start(&[]);
    let names = ["a.0.1", "a.0.2", "a.0.3"];
    let mut agent = rig.agent();
    for name in names {
        agent.spawn(sh(name, "exit 3"));
        agent.tree_gone(name);
    }
    // Hello and question lie there together when the keeper comes to read.
    signal(rig.keeper_pid(), Signal::STOP);
    let mut agent = rig::Agent::dial(&rig, Incarnation::draw());
    let (number, verb) = (OperationNumber(1), Verb::List { after: None });
    agent.send(&ToKeeper::Operate { number, verb });
    signal(rig.keeper_pid(), Signal::CONT);
    agent.welcome();
    while agent.answers.is_empty() {
        agent.turn();
    }
    for name in names {
        let is_told = |what: &What| matches!(what, What::Exited { exit: Exit::Code(3), .. });
        assert!(agent.facts.iter().any(|fact| fact.run == run(name) && is_told(&fact.what)));
    }
}

#[test]
fn a_dumped_core_is_told() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let mut spawn = rig.sh("a.0.1", "kill -SEGV $$");
    let limit = Limit { resource: Resource::Core, soft: u64::MAX, hard: u64::MAX };
    spawn.limits = vec![limit];
    agent.spawn(spawn);
    let Exit::Signal { signal: 11, core } = agent.exit("a.0.1") else { panic!("not by SEGV") };
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert!(core || pattern.starts_with('|'), "no core with the pattern {pattern}");
}

#[test]
fn what_a_run_used_is_told_with_its_exit() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    agent.spawn(sh("a.0.1", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"));
    let fact = agent.fact("a.0.1", |what| matches!(what, What::Exited { .. }));
    let What::Exited { usage: Some(usage), .. } = fact.what else { panic!("{fact:?}") };
    assert!(usage.user_us > 1000 && usage.rss_kib_max > 100, "{usage:?}");
    assert!(fact.at.unix_us > 1_700_000_000_000_000 && fact.at.mono_ns > 0);
}

#[test]
fn how_long_a_run_lasted_is_told_by_a_keeper_that_did_not_start_it_too() {
    let lasted = |agent: &mut rig::Agent| {
        let fact = agent.fact("a.0.1", |what| matches!(what, What::Exited { .. }));
        let What::Exited { ran_ms: Some(ran_ms), .. } = fact.what else { panic!("{fact:?}") };
        assert!((300..60_000).contains(&ran_ms), "{ran_ms} ms");
    };
    in_both_modes_launched(|rig| {
        let mut agent = rig.agent();
        agent.spawn(sh("a.0.1", "sleep 0.4"));
        lasted(&mut agent);
        let gone = agent.tree_gone("a.0.1");
        agent.acknowledge(gone.number);
        agent.spawn(sh("a.0.1", "while [ ! -e stop ]; do sleep 0.01; done"));
        // How long it runs is what is told.
        std::thread::sleep(Duration::from_millis(400));
        rig.kill_keeper();
        let mut agent = rig.agent();
        let [run] = &agent.list()[..] else { panic!("it is not adopted") };
        signal(run.pid, Signal::KILL);
        lasted(&mut agent);
    });
}

#[test]
fn a_program_that_cannot_run_is_told_with_the_step() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        let mut failing = |name: &str, change: &dyn Fn(&mut Spawn)| {
            let mut spawn = sh(name, "exit 0");
            change(&mut spawn);
            let (answer, _) = agent.operate(Verb::Spawn(Box::new(spawn)));
            let Answer::NotSpawned(failure) = answer else { panic!("{answer:?}") };
            agent.fact(name, |what| matches!(what, What::NotSpawned(_)));
            (failure.step, failure.errno)
        };
        let missing = |spawn: &mut Spawn| spawn.argv = vec!["/no/such/program".into()];
        assert_eq!(failing("a.0.1", &missing), (Step::Exec, libc::ENOENT));
        let sought = |spawn: &mut Spawn| spawn.argv = vec!["no-such-program".into()];
        assert_eq!(failing("a.0.2", &sought), (Step::Exec, libc::ENOENT));
        let folder = |spawn: &mut Spawn| spawn.argv = vec!["/tmp".into()];
        assert_eq!(failing("a.0.3", &folder), (Step::Exec, libc::EACCES));
        let directory = |spawn: &mut Spawn| spawn.working_dir = "/no/such/folder".into();
        assert_eq!(failing("a.0.4", &directory), (Step::WorkingDir, libc::ENOENT));
        // Nothing of them is left: the names may serve again.
        agent.spawn(sh("a.0.1", "exit 0"));
        assert_eq!(agent.exit("a.0.1"), Exit::Code(0));
    });
}

#[test]
fn a_request_that_contradicts_itself_starts_nothing() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    for change in [
        (|spawn| spawn.argv.clear()) as fn(&mut Spawn),
        |spawn| spawn.argv.push("a\0b".into()),
        |spawn| spawn.env.push(("A=B".into(), String::new())),
        |spawn| spawn.working_dir = "relative".into(),
        |spawn| spawn.oom_score_adjust = 1001,
        |spawn| spawn.ready_fd = Some(2),
        |spawn| spawn.memo = ByteBuf::from(vec![0; 10_000]),
    ] {
        let mut spawn = sh("a.0.1", "exit 0");
        change(&mut spawn);
        let (answer, _) = agent.operate(Verb::Spawn(Box::new(spawn)));
        assert!(matches!(answer, Answer::Refused(Refusal::Invalid(_))), "{answer:?}");
    }
    assert_eq!(agent.list(), []);
}

#[test]
fn a_daemon_that_forked_twice_belongs_to_its_run() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        agent.spawn(sh("a.0.1", "(setsid sleep 1000 & ) ; (setsid sh -c 'sleep 1001 & wait' &)"));
        assert_eq!(agent.exit("a.0.1"), Exit::Code(0));
        let state = &agent.list()[0];
        assert!(!state.main_lives && state.tree_lives, "{state:?}");
        agent.operate(Verb::KillTree { run: run("a.0.1") });
        agent.tree_gone("a.0.1");
        assert_eq!(rig.processes("a.0.1"), 0);
    });
}

#[test]
fn a_tree_that_ignores_term_is_killed_whole() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        let tree = "trap '' TERM; for i in 1 2 3 4 5; do (trap '' TERM; for j in 1 2 3 4; do \
                    sleep 1000 & done; wait) & done; echo up; wait";
        let (_, channels) = agent.spawn(sh("a.0.1", tree));
        read_until(&channels[0].1, "up");
        let signal =
            Verb::Signal { run: run("a.0.1"), signal: 15, to: Target::Tree, operation: None };
        assert_eq!(agent.operate(signal).0, Answer::Done);
        assert!(rig.processes("a.0.1") > 5);
        assert_eq!(agent.operate(Verb::KillTree { run: run("a.0.1") }).0, Answer::Done);
        assert_eq!(agent.exit("a.0.1"), Exit::Signal { signal: 9, core: false });
        agent.tree_gone("a.0.1");
        assert_eq!(rig.processes("a.0.1"), 0);
    });
}

#[test]
fn a_zombie_is_kept_until_its_exit_is_acknowledged() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        let (pid, _) = agent.spawn(sh("a.0.1", "exit 3"));
        agent.exit("a.0.1");
        let gone = agent.tree_gone("a.0.1");
        assert_eq!(process_state(pid), Some('Z'));
        agent.acknowledge(gone.number);
        assert_eq!(process_state(pid), None);
        assert_eq!(agent.list(), []);
    });
}

#[test]
fn facts_are_sent_again_in_order_to_the_agent_that_comes_next() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    agent.spawn(sh("a.0.1", "exit 3"));
    agent.spawn(sh("a.0.2", "exit 4"));
    agent.tree_gone("a.0.1");
    agent.tree_gone("a.0.2");
    let spawned = agent.fact("a.0.1", |what| matches!(what, What::Spawned { .. }));
    agent.acknowledge(spawned.number);
    drop(agent);
    let mut next = rig.agent();
    assert_eq!(next.exit("a.0.1"), Exit::Code(3));
    assert_eq!(next.exit("a.0.2"), Exit::Code(4));
    next.tree_gone("a.0.2");
    let numbers: Vec<_> = next.facts.iter().map(|fact| fact.number).collect();
    let contiguous: Vec<_> = (spawned.number.0 + 1..=6).map(FactNumber).collect();
    assert_eq!(numbers, contiguous);
    assert!(next.facts.iter().all(|fact| fact.memo == *b"memo"));
}

#[test]
fn a_repeated_operation_is_executed_once() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let verb = Verb::Spawn(Box::new(sh("a.0.1", "exec sleep 1000")));
    let (first, _) = agent.operate(verb.clone());
    agent.last -= 1;
    let (again, _) = agent.operate(verb.clone());
    let pid = |answer| {
        let Answer::Spawned { pid, .. } = answer else { panic!("{answer:?}") };
        pid
    };
    assert_eq!(pid(first), pid(again));
    // The same life of the agent on another connection is still the same.
    let incarnation = agent.incarnation;
    drop(agent);
    let mut agent = rig.agent_of(incarnation);
    assert!(matches!(agent.operate(verb.clone()).0, Answer::Spawned { .. }));
    drop(agent);
    // Another life cannot start a second copy either.
    let (answer, _) = rig.agent().operate(verb);
    assert_eq!(answer, Answer::Refused(Refusal::RunExists));
    assert_eq!(rig.processes("a.0.1"), 1);
}

#[test]
fn a_newer_agent_replaces_the_one_before() {
    let rig = Rig::start(&[]);
    let mut old = rig.agent();
    let mut new = rig.agent();
    assert_eq!(new.list(), []);
    let error = old.receive().unwrap_err();
    assert!(matches!(error, SocketError::Closed), "{error:?}");
}

#[test]
fn who_does_not_hold_the_agents_lock_is_turned_away() {
    let mut rig = Rig::start(&[]);
    drop(rig.agent());
    rig.lock = None;
    let client = socket::connect(&rig.place.keeper_socket()).unwrap();
    assert!(socket::wait_readable(client.as_fd(), PATIENCE).unwrap());
    let error = Inbox::default().receive::<FromKeeper>(&client).unwrap_err();
    assert!(matches!(error, SocketError::Closed), "{error:?}");
}

#[test]
fn garbage_from_the_agent_ends_its_connection_and_no_process() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    agent.spawn(sh("a.0.1", "exec sleep 1000"));
    rustix::net::send(&agent.socket, b"\xc1garbage", rustix::net::SendFlags::empty()).unwrap();
    while agent.receive().is_ok() {}
    let mut agent = rig.agent();
    assert!(agent.list()[0].main_lives);
}

#[test]
fn a_child_inherits_nothing_from_the_keeper() {
    in_both_modes(|rig| {
        let mut agent = rig.agent();
        let mut spawn = sh("a.0.1", "");
        spawn.argv = vec!["/bin/cat".into(), "/proc/self/status".into()];
        spawn.env = vec![("A".into(), "1".into())];
        spawn.account = Some(Account { uid: 12_345, gid: 23_456, groups: vec![34_567] });
        let (_, channels) = agent.spawn(spawn.clone());
        agent.exit("a.0.1");
        let status = read_until(&channels[0].1, "nonvoluntary");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        assert_eq!(field("Uid:"), "12345\t12345\t12345\t12345");
        assert_eq!(field("Gid:"), "23456\t23456\t23456\t23456");
        assert_eq!(field("Groups:"), "34567");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:", "SigBlk:", "SigIgn:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Umask:"), "0022");
        spawn.run = run("a.0.2");
        spawn.argv = vec!["/bin/ls".into(), "/proc/self/fd".into()];
        spawn.account = None;
        agent.spawn(spawn.clone());
        agent.exit("a.0.2");
        // The fourth is the folder that `ls` reads.
        assert_eq!(read_until(&channels[0].1, "3\n"), "0\n1\n2\n3\n");
        spawn.run = run("a.0.3");
        spawn.argv = vec!["/usr/bin/env".into()];
        agent.spawn(spawn);
        agent.exit("a.0.3");
        let env = read_until(&channels[0].1, "SMGR_RUN");
        assert_eq!(env.lines().count(), 2, "{env}");
        assert!(env.contains("A=1") && env.ends_with(":a.0.3\n"), "{env}");
    });
}

#[test]
fn a_child_has_its_own_oom_score_session_and_folder() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let mut spawn = sh("a.0.1", "cat /proc/self/oom_score_adj; ulimit -n; pwd; echo done");
    spawn.oom_score_adjust = 123;
    spawn.working_dir = "/usr".into();
    spawn.limits = vec![Limit { resource: Resource::Files, soft: 77, hard: 99 }];
    let (_, channels) = agent.spawn(spawn);
    assert_eq!(read_until(&channels[0].1, "done"), "123\n77\n/usr\ndone\n");
}

#[test]
fn readiness_by_a_descriptor_reaches_the_agent() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let mut spawn = sh("a.0.1", "echo ready >&9; exec 9>&-; sleep 1000");
    spawn.ready_fd = Some(9);
    let (_, channels) = agent.spawn(spawn);
    let ready = channels.iter().find(|(channel, _)| *channel == Channel::Ready).unwrap();
    assert_eq!(read_until(&ready.1, "ready"), "ready\n");
}

#[test]
fn a_readiness_pipe_outlives_keeper_and_agent() {
    let rig = Rig::start(&[LAUNCHER]);
    let mut agent = rig.agent();
    let script = "while [ ! -e go ]; do sleep 0.01; done; echo ready >&9; touch said; sleep 1000";
    let mut spawn = sh("a.0.1", script);
    spawn.ready_fd = Some(9);
    spawn.working_dir = rig.state.path().display().to_string();
    let (pid, channels) = agent.spawn(spawn);
    let keeper = rig.keeper_pid();
    signal(rig.child.id(), Signal::STOP);
    signal(keeper, Signal::KILL);
    drop((agent, channels));
    File::create(rig.state.path().join("go")).unwrap();
    wait_until("it has spoken", || rig.state.path().join("said").exists());
    assert!(process_state(pid).is_some_and(|state| state != 'Z'));
    signal(rig.child.id(), Signal::CONT);
    rig.wait_for_keeper_after(keeper);
    let channels = rig.agent().take("a.0");
    let ready = channels.iter().find(|(channel, _)| *channel == Channel::Ready).unwrap();
    assert_eq!(read_until(&ready.1, "ready"), "ready\n");
}

#[test]
fn a_notification_comes_with_its_senders_credentials() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let spawn = notifying("a.0.1", "", "");
    let (pid, channels) = agent.spawn(spawn);
    let notify = channels.iter().find(|(channel, _)| *channel == Channel::Notify).unwrap();
    assert!(socket::wait_readable(notify.1.as_fd(), PATIENCE).unwrap());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = rustix::net::RecvFlags::empty();
    let got = rustix::net::recvmsg(&notify.1, &mut slices, &mut control, flags).unwrap();
    let mut sender = None;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmCredentials(credentials) = message {
            sender = Some(credentials.pid);
        }
    }
    assert_eq!(sender.unwrap().as_raw_nonzero().get() as u32, pid);
    assert_eq!(&bytes[..got.bytes], b"READY=1");
}

#[test]
fn a_service_keeps_its_notify_address_and_nobody_else_can_take_it() {
    let rig = Rig::start(&[LAUNCHER]);
    let mut agent = rig.agent();
    let (_, channels) = agent.spawn(sh("b.0.1", "sleep 1000"));
    let has_notify = |channels: &[(Channel, std::os::fd::OwnedFd)]| {
        channels.iter().any(|(channel, _)| *channel == Channel::Notify)
    };
    assert!(!has_notify(&channels), "nobody asked for one");
    // The slot has none yet, and gets it with the first run that wants it.
    let before = "import time, os\nwhile not os.path.exists('go'): time.sleep(0.01)\n";
    let again = "open('said', 'w')\nwhile not os.path.exists('again'): time.sleep(0.01)\n\
                 s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                 s.connect(os.environ['NOTIFY_SOCKET'])\ns.send(b'READY=1')\n";
    let mut spawn = notifying("a.0.1", before, again);
    spawn.working_dir = rig.state.path().display().to_string();
    let (pid, channels) = agent.spawn(spawn);
    assert!(has_notify(&channels));
    let mut environment = String::new();
    wait_until("its program has begun", || {
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment = String::from_utf8_lossy(&bytes).into_owned();
        environment.contains("NOTIFY_SOCKET=")
    });
    let address = environment.split('\0').find_map(|text| text.strip_prefix("NOTIFY_SOCKET="));
    let address = std::path::PathBuf::from(address.unwrap());
    let folder = fs::metadata(address.parent().unwrap()).unwrap();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!((folder.uid(), folder.mode() & 0o777), (own, 0o711));
    // Both die, and what it says in between is heard by the next ones.
    let keeper = rig.keeper_pid();
    signal(rig.child.id(), Signal::STOP);
    signal(keeper, Signal::KILL);
    drop((agent, channels));
    File::create(rig.state.path().join("go")).unwrap();
    wait_until("it has spoken", || rig.state.path().join("said").exists());
    signal(rig.child.id(), Signal::CONT);
    rig.wait_for_keeper_after(keeper);
    let mut agent = rig.agent();
    let channels = agent.take("a.0");
    let notify = &channels.iter().find(|(channel, _)| *channel == Channel::Notify).unwrap().1;
    let mut bytes = [0; 64];
    for file in ["again", "over"] {
        assert!(socket::wait_readable(notify.as_fd(), PATIENCE).unwrap());
        let flags = rustix::net::RecvFlags::empty();
        let (count, _) = rustix::net::recv(notify, &mut bytes, flags).unwrap();
        assert_eq!(&bytes[..count], b"READY=1");
        File::create(rig.state.path().join(file)).unwrap();
    }
}

/// A program that says READY=1 on its notify socket and does something before and after it.
fn notifying(name: &str, before: &str, after: &str) -> Spawn {
    let script = format!(
        "import os, socket\n{before}s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         s.connect(os.environ['NOTIFY_SOCKET'])\ns.send(b'READY=1')\n{after}\
         import time; time.sleep(1000)"
    );
    let mut spawn = sh(name, "");
    spawn.argv = vec!["python3".into(), "-c".into(), script];
    spawn.notify = true;
    spawn
}

#[test]
fn output_is_neither_lost_nor_broken_when_the_agent_dies() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    // More than a pipe holds, so that the writer has to wait while there is no agent.
    let (pid, channels) = agent.spawn(sh("a.0.1", "seq 1 30000; echo end; sleep 1000"));
    drop((agent, channels));
    // What would end it is a moment without an agent; that it is waiting nothing tells.
    std::thread::sleep(Duration::from_millis(200));
    assert!(process_state(pid).is_some_and(|state| state != 'Z'));
    let mut agent = rig.agent();
    let channels = agent.take("a.0");
    let text = read_until(&channels[0].1, "end");
    assert_eq!(text.lines().count(), 30_001);
}

#[test]
fn services_survive_the_keeper_and_are_adopted_with_their_output_and_exit() {
    in_both_modes_launched(|rig| {
        let mut agent = rig.agent();
        let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i; sleep 0.01; done; \
                      echo last $i; exit 5";
        let spawn = rig.sh("a.0.1", script);
        let (pid, channels) = agent.spawn(spawn);
        let mut text = read_until(&channels[0].1, "10\n");
        rig.kill_keeper();
        let mut agent = rig.agent();
        let given = channels.iter().map(|(channel, fd)| (*channel, fd.try_clone().unwrap()));
        agent.give("a.0", given.collect(), vec![]);
        let runs = agent.list();
        assert_eq!(runs.len(), 1, "{runs:?}");
        assert!(runs[0].adopted && runs[0].main_lives && runs[0].pid == pid, "{runs:?}");
        assert_eq!(runs[0].memo, *b"memo");
        let again = agent.operate(Verb::Spawn(Box::new(sh("a.0.1", "exit 0")))).0;
        assert_eq!(again, Answer::Refused(Refusal::RunExists));
        File::create(rig.state.path().join("stop")).unwrap();
        assert_eq!(agent.exit("a.0.1"), Exit::Code(5));
        let gone = agent.tree_gone("a.0.1");
        text += &read_until(&channels[0].1, "last");
        let numbers: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().zip(1..).all(|(got, wanted)| *got == wanted), "{text}");
        assert!(text.contains(&format!("last {}", numbers.len())), "{text}");
        agent.acknowledge(gone.number);
        assert_eq!(agent.list(), []);
        // The slot's pipes go on with the next run, under the next keeper.
        agent.spawn(sh("a.0.2", "echo second"));
        assert_eq!(read_until(&channels[0].1, "second"), "second\n");
    });
}

#[test]
fn an_exit_that_no_keeper_saw_is_told_by_the_next() {
    in_both_modes_launched(|rig| {
        let mut agent = rig.agent();
        let spawn = rig.sh("a.0.1", "while [ ! -e stop ]; do sleep 0.01; done; exit 6");
        let (pid, _) = agent.spawn(spawn);
        let keeper = rig.keeper_pid();
        signal(rig.child.id(), Signal::STOP);
        signal(keeper, Signal::KILL);
        File::create(rig.state.path().join("stop")).unwrap();
        let has_ended = || process_state(pid).is_none_or(|state| state == 'Z');
        wait_until("it ends while no keeper lives", has_ended);
        signal(rig.child.id(), Signal::CONT);
        rig.wait_for_keeper_after(keeper);
        let mut agent = rig.agent();
        agent.list();
        assert_eq!(agent.exit("a.0.1"), Exit::Code(6));
        agent.tree_gone("a.0.1");
    });
}

#[test]
fn an_exit_that_only_the_agents_pidfd_saw_is_told_by_it() {
    let mut rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let spawn = rig.sh("a.0.1", "while [ ! -e stop ]; do sleep 0.01; done; exit 8");
    let (answer, mut descriptors) = agent.operate(Verb::Spawn(Box::new(spawn)));
    let Answer::Spawned { pid, .. } = answer else { panic!("{answer:?}") };
    let pidfd = descriptors.remove(0);
    let channels = [Channel::Stdout, Channel::Stderr, Channel::Notify];
    let channels = channels.into_iter().zip(descriptors).collect();
    // Without a launcher the process goes to whoever reaps at once.
    rig.child.kill().unwrap();
    rig.child.wait().unwrap();
    File::create(rig.state.path().join("stop")).unwrap();
    wait_until("the process is reaped", || process_state(pid).is_none());
    rig.restart();
    let mut agent = rig.agent();
    let claim = Claim { run: run("a.0.1"), pid, memo: ByteBuf::from(*b"memo") };
    agent.give("a.0", channels, vec![(claim, pidfd)]);
    agent.list();
    let exit = agent.exit("a.0.1");
    assert!(matches!(exit, Exit::Code(8)) || !kernel_tells_exits(), "{exit:?}");
    agent.tree_gone("a.0.1");
}

#[test]
fn an_exit_that_nobody_saw_is_unknown_and_never_success() {
    let mut rig = Rig::start(&[]);
    let mut agent = rig.agent();
    let spawn = rig.sh("a.0.1", "while [ ! -e stop ]; do sleep 0.01; done; exit 0");
    let (pid, channels) = agent.spawn(spawn);
    drop((agent, channels));
    rig.child.kill().unwrap();
    rig.child.wait().unwrap();
    File::create(rig.state.path().join("stop")).unwrap();
    wait_until("the process is reaped", || process_state(pid).is_none());
    rig.restart();
    let mut agent = rig.agent();
    agent.list();
    assert_eq!(agent.exit("a.0.1"), Exit::Unknown);
    agent.tree_gone("a.0.1");
}

#[test]
fn two_hundred_kills_leave_no_process_no_zombie_and_no_cgroup() {
    let rig = Rig::start(&[]);
    let mut agent = rig.agent();
    for number in 1..=200 {
        let name = format!("a.0.{number}");
        agent.spawn(sh(&name, "exec sleep 1000"));
        let verb = match number % 2 {
            0 => Verb::KillTree { run: run(&name) },
            _ => Verb::Signal { run: run(&name), signal: 9, to: Target::Main, operation: None },
        };
        assert_eq!(agent.operate(verb).0, Answer::Done);
        assert_eq!(agent.exit(&name), Exit::Signal { signal: 9, core: false });
        let gone = agent.tree_gone(&name);
        agent.acknowledge(gone.number);
        agent.facts.clear();
    }
    assert_eq!(agent.list(), []);
    let children = format!("/proc/{0}/task/{0}/children", rig.child.id());
    assert_eq!(fs::read_to_string(children).unwrap(), "");
    if let Trees::Cgroup { root } = &agent.trees {
        let left = fs::read_dir(root).unwrap().flatten();
        assert_eq!(left.filter(|entry| entry.file_type().unwrap().is_dir()).count(), 0);
    }
}

#[test]
fn ten_deaths_of_the_keeper_double_nothing_and_lose_no_exit() {
    in_both_modes_launched(|rig| {
        let mut agent = rig.agent();
        for number in 0..5 {
            let mut spawn = rig
                .sh(&format!("a.{number}.1"), "while [ ! -e stop ]; do sleep 0.05; done; exit 9");
            spawn.slot = format!("a.{number}").parse().unwrap();
            agent.spawn(spawn);
        }
        for _ in 0..10 {
            rig.kill_keeper();
        }
        let mut agent = rig.agent();
        assert_eq!(agent.list().len(), 5);
        File::create(rig.state.path().join("stop")).unwrap();
        for number in 0..5 {
            assert_eq!(agent.exit(&format!("a.{number}.1")), Exit::Code(9));
            agent.tree_gone(&format!("a.{number}.1"));
        }
    });
}

#[test]
fn a_run_that_was_acknowledged_is_told_by_no_later_keeper() {
    in_both_modes_launched(|rig| {
        let mut agent = rig.agent();
        let spawn = rig.sh("a.0.1", "while [ ! -e stop ]; do sleep 0.01; done");
        let (pid, _) = agent.spawn(spawn);
        rig.kill_keeper();
        let mut agent = rig.agent();
        agent.list();
        File::create(rig.state.path().join("stop")).unwrap();
        let gone = agent.tree_gone("a.0.1");
        agent.acknowledge(gone.number);
        assert_eq!(process_state(pid), Some('Z'), "the launcher keeps it for a while");
        rig.kill_keeper();
        assert_eq!(rig.agent().list(), []);
    });
}

#[test]
fn the_parts_end_when_asked_and_the_services_go_on() {
    let mut rig = Rig::start(&[LAUNCHER]);
    let mut agent = rig.agent();
    let (pid, _) = agent.spawn(sh("a.0.1", "exec sleep 1000"));
    signal(rig.child.id(), Signal::USR1);
    wait_until("the launcher ends", || rig.child.try_wait().unwrap().is_some());
    assert_eq!(rig.child.wait().unwrap().code(), Some(0));
    assert!(process_state(pid).is_some());
    rig.restart();
    let mut agent = rig.agent();
    assert!(agent.list()[0].main_lives);
}

#[test]
fn a_second_launcher_waits_for_the_keeper_that_lives() {
    let mut rig = Rig::start(&[LAUNCHER]);
    let keeper = rig.keeper_pid();
    rig.child.kill().unwrap();
    rig.child.wait().unwrap();
    rig.restart();
    // Time in which it does nothing.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.keeper_pid(), keeper);
    signal(keeper, Signal::KILL);
    rig.wait_for_keeper_after(keeper);
    rig.agent().list();
}

#[test]
fn a_tree_is_not_gone_because_nobody_could_look() {
    use rustix::process::{Resource, Rlimit, prlimit};

    in_both_modes(|rig| {
        let mut agent = rig.agent();
        let gate = rig.state.path().join("gate");
        let script = format!("sleep 1000 & while [ ! -e {} ]; do sleep 0.05; done", gate.display());
        agent.spawn(sh("a.0.1", &script));
        let keeper = Some(as_pid(rig.keeper_pid()));
        let none = Rlimit { current: Some(0), maximum: Some(1024) };
        prlimit(keeper, Resource::Nofile, none).unwrap();
        fs::write(&gate, "").unwrap();
        let fact = agent.fact("a.0.1", |what| matches!(what, What::Exited { .. }));
        assert!(matches!(fact.what, What::Exited { tree_empty: false, .. }), "{fact:?}");
        assert_eq!(rig.processes("a.0.1"), 1);
        agent.operate(Verb::KillTree { run: run("a.0.1") });
        let again = Rlimit { current: Some(1024), maximum: Some(1024) };
        prlimit(keeper, Resource::Nofile, again).unwrap();
        // What could not be looked at is looked at again, and what was to be killed is killed.
        agent.tree_gone("a.0.1");
        assert_eq!(rig.processes("a.0.1"), 0);
    });
}
