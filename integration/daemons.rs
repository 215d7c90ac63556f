//! Daemons that nobody here wrote, from Debian's packages, with the specs of `contrib/services` and nothing else.
//!
//! Only their addresses and folders are changed, in `override.d`, as an operator would. `scripts/daemons` installs
//! them; where one is missing its test says so and does nothing.

#![expect(clippy::print_stderr, reason = "a test that does nothing says why")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::machine::{Machine, is_root};
use crate::support::process::{kill_9, processes_with};
use crate::support::wait::eventually;

mod heavy {
    use super::*;

    #[test]
    fn nginx_starts_crashes_reloads_and_stops() {
        let Some(host) = Host::with("/usr/sbin/nginx") else { return };
        let folder = host.folder_of("root");
        let config = folder.join("nginx.conf");
        let write = |answer: &str| {
            let text = format!(
                "user www-data;\nworker_processes 2;\npid {0}/nginx.pid;\nevents {{}}\nhttp {{\n\
                 access_log off;\nserver {{ listen 127.0.0.1:{1}; location / {{ return 200 \"{answer}\\n\"; }} }}\n}}\n",
                folder.display(),
                host.port
            );
            fs::write(&config, text).unwrap();
        };
        write("one");
        let shown = config.display();
        host.up(
            "nginx",
            &format!(
                "exec = [\"/usr/sbin/nginx\", \"-e\", \"stderr\", \"-c\", \"{shown}\", \"-g\", \
                 \"daemon off; error_log stderr notice;\"]\n"
            ),
        );
        let first = host.machine.ready("nginx");
        assert!(host.get("/").contains("one"));

        kill_9(first);
        let second = host.machine.ready_but("nginx", Some(first));
        assert!(host.get("/").contains("one"));

        write("two");
        host.machine.exits(0, &["reload", "nginx"]);
        eventually("nginx answers by its new configuration", || {
            host.get("/").contains("two").then_some(())
        });
        assert_eq!(host.machine.ready("nginx"), second);
        host.stops("nginx");
    }

    #[test]
    fn redis_starts_crashes_says_that_it_cannot_reload_and_stops() {
        let Some(host) = Host::with("/usr/bin/redis-server") else { return };
        let folder = host.folder_of("redis");
        let config = folder.join("redis.conf");
        let text = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nappendonly yes\nappendfsync always\n",
            host.port,
            folder.display()
        );
        fs::write(&config, text).unwrap();
        let shown = config.display();
        host.up(
            "redis",
            &format!(
                "exec = [\"/usr/bin/redis-server\", \"{shown}\", \"--daemonize\", \"no\", \
                 \"--supervised\", \"systemd\", \"--logfile\", \"\"]\n"
            ),
        );
        let first = host.machine.ready("redis");
        assert!(host.say("SET colour blue\r\n").starts_with("+OK"));

        kill_9(first);
        let second = host.machine.ready_but("redis", Some(first));
        assert!(host.say("GET colour\r\n").contains("blue"), "what it had stored is there");

        let refused = host.machine.exits(6, &["reload", "redis"]);
        assert!(refused.contains("E0608") && refused.contains("smgr restart"), "{refused}");
        assert_eq!(host.machine.ready("redis"), second);
        host.stops("redis");
    }

    #[test]
    fn postgresql_starts_crashes_reloads_and_stops() {
        let Some(programs) = postgresql() else { return skip("no /usr/lib/postgresql/*/bin") };
        let Some(host) = Host::with(programs.join("postgres").to_str().unwrap()) else { return };
        let folder = host.folder_of("postgres");
        let cluster = folder.join("main");
        let made = Command::new("setpriv")
            .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"])
            .arg(programs.join("initdb"))
            .args(["--no-sync", "--auth", "trust", "-D"])
            .arg(&cluster)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (program, port) = (programs.join("postgres"), host.port);
        host.up(
            "postgresql",
            &format!(
                "exec = [\"{}\", \"-D\", \"{}\", \"-k\", \"{}\", \"-p\", \"{port}\"]\n",
                program.display(),
                cluster.display(),
                folder.display()
            ),
        );
        let query = |text: &str| {
            let ran = Command::new(programs.join("psql"))
                .args(["-X", "-A", "-t", "-U", "postgres", "-d", "postgres", "-p"])
                .arg(port.to_string())
                .arg("-h")
                .arg(&folder)
                .args(["-c", text])
                .output()
                .unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).unwrap().trim().to_owned()
        };
        let first = host.machine.ready("postgresql");
        query("create table kept as select 7 as it");

        kill_9(first);
        let second = host.machine.ready_but("postgresql", Some(first));
        assert_eq!(query("select it from kept"), "7");

        let mut config =
            fs::OpenOptions::new().append(true).open(cluster.join("postgresql.conf")).unwrap();
        config.write_all(b"work_mem = '5MB'\n").unwrap();
        host.machine.exits(0, &["reload", "postgresql"]);
        eventually("it works by its new configuration", || {
            (query("show work_mem") == "5MB").then_some(())
        });
        assert_eq!(host.machine.ready("postgresql"), second);
        host.stops("postgresql");
    }

    #[test]
    fn an_application_under_gunicorn_starts_crashes_reloads_and_stops() {
        let Some(host) = Host::with("/usr/bin/gunicorn") else { return };
        let folder = host.folder_of("root");
        let write = |answer: &str| {
            let text = format!(
                "def app(environ, start):\n    start(\"200 OK\", [(\"Content-Type\", \"text/plain\")])\n    \
                 return [b\"{answer}\\n\"]\n"
            );
            fs::write(folder.join("app.py"), text).unwrap();
        };
        write("one");
        host.up(
            "gunicorn",
            &format!(
                "working_dir = \"{}\"\nexec = [\"/usr/bin/gunicorn\", \"--bind\", \"127.0.0.1:{}\", \"--workers\", \
                 \"2\", \"--worker-tmp-dir\", \"/dev/shm\", \"app:app\"]\n[env]\nPYTHONDONTWRITEBYTECODE = \"1\"\n",
                folder.display(),
                host.port
            ),
        );
        let first = host.machine.ready("gunicorn");
        let answers = |answer: &str| {
            eventually("a worker answers", || host.get("/").contains(answer).then_some(()));
        };
        answers("one");

        kill_9(first);
        let second = host.machine.ready_but("gunicorn", Some(first));
        answers("one");

        write("two");
        host.machine.exits(0, &["reload", "gunicorn"]);
        answers("two");
        assert_eq!(host.machine.ready("gunicorn"), second);
        host.stops("gunicorn");
    }
}

/// A machine on which one of the daemons runs.
struct Host {
    machine: Machine,
    port: u16,
}

impl Host {
    /// Returns none, and says why, where the daemon cannot be run.
    fn with(program: &str) -> Option<Self> {
        if !Path::new(program).exists() {
            skip(&format!("no {program}; scripts/daemons installs it"));
            return None;
        }
        if !is_root() {
            skip("only root can start a service as another user");
            return None;
        }
        let machine = Machine::new();
        // The daemons' users have to reach their folders in it.
        fs::set_permissions(machine.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Some(Self { machine, port })
    }

    /// Makes the daemon's own folder.
    fn folder_of(&self, user: &str) -> PathBuf {
        let folder = self.machine.folder().join("daemon");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let changed = Command::new("chown").arg(user).arg(&folder).status().unwrap();
        assert!(changed.success());
        folder
    }

    /// Brings it up by the spec of `contrib/services`, with its addresses and folders changed.
    fn up(&self, service: &str, changes: &str) {
        let spec =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("contrib/services/{service}.toml"));
        self.machine
            .file(&format!("services.d/{service}.toml"), &fs::read_to_string(spec).unwrap());
        self.machine.file(&format!("override.d/{service}.toml"), changes);
        self.machine.exits(0, &["up", "-d"]);
    }

    /// Stops it and demands that no process of it is left, whatever it forked.
    fn stops(&self, service: &str) {
        let folder = self.machine.folder().join("daemon").display().to_string();
        let tree = tree_of(self.machine.ready(service));
        assert!(tree.len() > 1 || service == "redis", "{service} has workers: {tree:?}");
        self.machine.exits(0, &["stop", service]);
        assert_eq!(self.machine.instance(service)["state"], "inactive");
        let left: Vec<_> =
            tree.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        assert!(left.is_empty(), "{left:?} of {tree:?} still run");
        assert!(processes_with(&folder).is_empty(), "{:?}", processes_with(&folder));
        self.machine.exits(0, &["audit", "verify"]);
        assert_eq!(self.machine.json(&["replay"])["live"]["equal"], true);
    }

    fn get(&self, path: &str) -> String {
        self.say(&format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"))
    }

    /// Sends a request and returns the beginning of the answer; nothing where nobody answers.
    fn say(&self, request: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            stream.write_all(request.as_bytes())?;
            let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                answer.extend_from_slice(&buffer[..bytes]);
            }
            std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        ask().unwrap_or_default()
    }
}

/// Lists a process and all that descend from it.
fn tree_of(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let pid = found[next];
        let children =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        next += 1;
    }
    found
}

fn postgresql() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<_> =
        versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    found.sort();
    found.pop()
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}
