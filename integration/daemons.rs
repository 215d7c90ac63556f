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
    fn the_cache_of_nginx_is_cleared_by_its_action() {
        let Some(host) = Host::with("/usr/sbin/nginx") else { return };
        let folder = host.folder_of("root");
        let (shown, port) = (folder.display(), host.port);
        let text = format!(
            "user root;\npid {shown}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n\
             proxy_cache_path {shown}/cache/img keys_zone=img:1m;\nserver {{ listen 127.0.0.1:{port};\n\
             location / {{ proxy_cache img; proxy_cache_valid 200 1h; proxy_pass http://unix:{shown}/up; }} }}\n\
             server {{ listen unix:{shown}/up; location / {{ return 200 \"made $request_id\"; }} }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), text).unwrap();
        fs::create_dir(folder.join("cache")).unwrap();
        host.up(
            "nginx",
            &format!(
                "exec = [\"/usr/sbin/nginx\", \"-e\", \"stderr\", \"-c\", \"{shown}/nginx.conf\", \"-g\", \
                 \"daemon off; error_log stderr notice;\"]\n[action.cache-clear]\n\
                 exec = [\"/usr/bin/find\", \"{shown}/cache/${{zone}}\", \"-type\", \"f\", \"-delete\"]\n"
            ),
        );
        host.machine.ready("nginx");
        let body = || host.get("/").split("made ").nth(1).map(str::to_owned);
        let first = eventually("it answers", body);
        assert_eq!(body().as_ref(), Some(&first), "the second answer is the kept one");
        host.machine.exits(0, &["action", "run", "nginx", "cache-clear", "zone=img"]);
        let second = body();
        assert!(second.is_some() && second.as_ref() != Some(&first), "it is made anew");
        assert_eq!(body(), second, "and kept");
        let refused = host.machine.smgr(&["action", "run", "nginx", "cache-clear", "zone=../.."]);
        assert!(!refused.status.success());
        host.stops("nginx");
    }

    #[test]
    fn the_opcache_of_php_fpm_is_reset_through_fpm_itself() {
        let fpm = "/usr/sbin/php-fpm8.2";
        let (Some(host), true) = (Host::with(fpm), Path::new("/usr/bin/cgi-fcgi").exists()) else {
            return skip("php-fpm8.2 and cgi-fcgi are needed; scripts/daemons installs them");
        };
        let folder = host.folder_of("root");
        let shown = folder.display();
        let config = format!(
            "[global]\npid = {shown}/fpm.pid\nerror_log = /proc/self/fd/2\n[www]\nuser = www-data\n\
             group = www-data\nlisten = {shown}/fpm.sock\npm = static\npm.max_children = 2\n"
        );
        fs::write(folder.join("fpm.conf"), config).unwrap();
        for name in ["opcache-reset", "opcache-reset.php"] {
            fs::copy(recipe(name), folder.join(name)).unwrap();
        }
        let page = folder.join("page.php");
        let write =
            |answer: &str| fs::write(&page, format!("<?php echo \"made {answer}\";")).unwrap();
        write("one");
        host.up(
            "php-fpm",
            &format!(
                "exec = [\"{fpm}\", \"--nodaemonize\", \"--fpm-config\", \"{shown}/fpm.conf\", \
                 \"-d\", \"opcache.enable=1\", \"-d\", \"opcache.validate_timestamps=0\", \
                 \"-d\", \"opcache.file_update_protection=0\"]\n\
                 [action.opcache-reset]\nexec = [\"{shown}/opcache-reset\", \"{shown}/fpm.sock\", \
                 \"{shown}/opcache-reset.php\"]\n"
            ),
        );
        let first = host.machine.ready("php-fpm");
        let get = || {
            let ran = Command::new("cgi-fcgi")
                .args(["-bind", "-connect", &format!("{shown}/fpm.sock")])
                .env("SCRIPT_FILENAME", &page)
                .env("SCRIPT_NAME", "/page")
                .env("REQUEST_METHOD", "GET")
                .output();
            String::from_utf8_lossy(&ran.unwrap().stdout).into_owned()
        };
        assert!(get().contains("made one"), "{}", get());
        write("two");
        assert!(get().contains("made one"), "the opcache does not look at the file again");
        host.machine.exits(0, &["action", "run", "php-fpm", "opcache-reset"]);
        eventually("it is read anew", || get().contains("made two").then_some(()));

        kill_9(first);
        let second = host.machine.ready_but("php-fpm", Some(first));
        host.machine.exits(0, &["reload", "php-fpm"]);
        eventually("it serves on", || get().contains("made two").then_some(()));
        assert_eq!(host.machine.ready("php-fpm"), second);
        fs::write(folder.join("opcache-reset.php"), "<?php echo 'opcache is off';").unwrap();
        host.machine.exits(0, &["reload", "php-fpm"]);
        eventually("what PHP says is no success", || {
            let ran = host.machine.smgr(&["action", "run", "php-fpm", "opcache-reset"]);
            (ran.status.code() == Some(15)).then_some(())
        });
        host.stops("php-fpm");
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
                 \"--supervised\", \"systemd\", \"--logfile\", \"\"]\n\
                 [action.cache-clear]\nexec = [\"/usr/bin/redis-cli\", \"-p\", \"{}\", \"-e\", \"-n\", \
                 \"${{db}}\", \"FLUSHDB\", \"ASYNC\"]\n",
                host.port
            ),
        );
        let first = host.machine.ready("redis");
        assert!(host.say("SET colour blue\r\n").starts_with("+OK"));

        kill_9(first);
        let second = host.machine.ready_but("redis", Some(first));
        assert!(host.say("GET colour\r\n").contains("blue"), "what it had stored is there");

        assert!(host.say("SELECT 1\r\nSET size big\r\n").contains("+OK"));
        host.machine.exits(0, &["action", "run", "redis", "cache-clear", "db=1"]);
        assert!(host.say("SELECT 1\r\nDBSIZE\r\n").contains(":0"));
        assert!(host.say("DBSIZE\r\n").contains(":1"), "the other database is as it was");
        let refused = host.machine.smgr(&["action", "run", "redis", "cache-clear", "db=16"]);
        assert!(!refused.status.success());
        // What Redis refuses is no success.
        assert!(host.say("CONFIG SET requirepass x\r\n").starts_with("+OK"));
        host.machine.exits(15, &["action", "run", "redis", "cache-clear"]);

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
        let spec = recipe(&format!("{service}.toml"));
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

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/services").join(name)
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
