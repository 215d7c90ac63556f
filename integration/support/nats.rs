//! A nats-server of one's own for each test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running nats-server on a port of the loopback that was free; killed when dropped.
#[derive(Debug)]
pub(crate) struct NatsServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl NatsServer {
    /// Starts a server with JetStream and open to everybody.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with further lines of configuration.
    pub(crate) fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("jetstream");
        let config = format!("jetstream {{ store_dir: {:?} }}\n{config}\n", store.display());
        fs::write(folder.path().join("nats.conf"), config).unwrap();
        // The port -1 means any that is free.
        let (child, port) = launch(&folder, "-1");
        Self { child, port, folder }
    }

    /// Returns the address that clients use.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the port, which no other server of this machine has.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _already_dead = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Starts the server again on the same port, with what it had stored.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let (child, port) = launch(&self.folder, &self.port.to_string());
        assert_eq!(port, self.port);
        self.child = child;
    }

    /// Stops the server with SIGSTOP: connections stay, nothing answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the server to test with.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("SMGR_NATS_SERVER").map(PathBuf::from).expect(
        "this test needs a nats-server: run it with scripts/test, \
         or set SMGR_NATS_SERVER to the path of one",
    )
}

fn launch(folder: &TempDir, port: &str) -> (Child, u16) {
    let program = program();
    let mut child = Command::new(&program)
        .args(["-a", "127.0.0.1", "-p", port, "-c"])
        .arg(folder.path().join("nats.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("failed to run `{}`: {error}", program.display()));
    let log = BufReader::new(child.stderr.take().unwrap());
    let (ready, is_ready) = mpsc::channel();
    // Reads to the end, or the server would block on a full pipe.
    thread::spawn(move || {
        let mut seen = String::new();
        let mut port = None;
        for line in log.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            }
            if line.contains("Server is ready") {
                let _nobody_waits = ready.send(Ok(port));
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        let _was_ready = ready.send(Err(seen));
    });
    match is_ready.recv_timeout(START_TIMEOUT) {
        Ok(Ok(Some(port))) => (child, port),
        Ok(Ok(None)) => panic!("nats-server did not say on which port it listens"),
        Ok(Err(log)) => panic!("nats-server ended at once:\n{log}"),
        Err(_) => {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("nats-server was not ready after {START_TIMEOUT:?}");
        }
    }
}
