//! The second minute, as somebody types it who has nothing but the binary and a nats-server.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Fleet;

/// A fleet, and the folder of the demo.
struct Minute {
    fleet: Fleet,
    shop: PathBuf,
}

impl Minute {
    fn begin() -> Self {
        let fleet = Fleet::new();
        let said = fleet.machine.exits(0, &["up", "--nodes", "3", "-d"]);
        assert!(said.contains("try: smgr demo shop"), "{said}");
        let said = fleet.machine.exits(0, &["demo", "shop"]);
        let names = "web-1.0.tar.gz, web-1.1.tar.gz, web-broken.tar.gz";
        assert_eq!(said, format!("wrote web.toml and three releases: {names}\n"));
        let shop = fleet.machine.folder().join("shop");
        Self { fleet, shop }
    }

    /// Types a command in the folder of the demo; returns what it printed, without what times make different.
    fn types(&self, code: i32, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let ran = self.fleet.machine.command(&words).current_dir(&self.shop).output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!(ran.status.code(), Some(code), "{line}\n{out}{err}");
        timeless(&format!("{out}{err}"))
    }

    fn deploys(&self, code: i32, version: &str) -> String {
        self.types(code, &format!("deploy web -f web.toml --artifact web-{version}.tar.gz"))
    }
}

/// Returns a text with `T` for each time and `ID` for each rollout.
fn timeless(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_end_matches([',', ':']);
        let rest = &word[core.len()..];
        let number = core.strip_suffix("ms").or(core.strip_suffix('s'));
        let is_time = number.is_some_and(|number| number.parse::<f64>().is_ok());
        match () {
            () if is_time => format!("T{rest}"),
            () if core.starts_with("r-") => format!("ID{rest}"),
            () => word.to_owned(),
        }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.replace(" ms", "ms").lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

/// Asks a node's shop, as `curl --unix-socket` does.
fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned())
}

#[test]
fn the_second_minute_is_the_one_of_the_contract() {
    let minute = Minute::begin();
    assert_eq!(
        minute.deploys(0, "1.0"),
        "\
ID  web  new → 1.0 on 3 nodes   first release: no canary, nothing to go back to
  n1 n2 n3   ready T, held T
succeeded in T: 1.0 on 3 of 3 nodes
"
        .replace("n1 n2 n3", &nodes(&minute, 1))
    );
    let sockets = ["n1", "n2", "n3"].map(|node| minute.shop.join(format!("{node}.sock")));
    for socket in &sockets {
        assert_eq!(ask(socket).unwrap(), "shop 1.0");
    }
    // From here on every node is asked all the time, and answers.
    let is_over = Arc::new(AtomicBool::new(false));
    let askers = sockets.clone().map(|socket| {
        let is_over = is_over.clone();
        thread::spawn(move || {
            let mut heard = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                heard.push(ask(&socket).expect("nobody is turned away"));
                thread::sleep(Duration::from_millis(5));
            }
            heard
        })
    });
    let said = minute.deploys(0, "1.1");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "ID  web  1.0 → 1.1 on 3 nodes   back to 1.0 if it fails");
    let order = nodes(&minute, 3);
    let names: Vec<&str> = order.split(' ').collect();
    assert_eq!(lines[1], format!("  1 canary   {}   ready T, held T", names[0]));
    assert_eq!(lines[2], format!("  2          {}   ready T, held T", names[1]));
    assert_eq!(lines[3], format!("  3          {}   ready T, held T", names[2]));
    assert!(lines[4].starts_with("succeeded in T: 1.1 on 3 of 3 nodes   "), "{said}");
    assert!(lines[4].ends_with("   undo: smgr rollback web"), "{said}");
    assert_eq!(
        minute.deploys(10, "broken"),
        format!(
            "\
ID  web  1.1 → broken on 3 nodes   back to 1.1 if it fails
  1 canary   {}   exited with code 1 after T: missing DATABASE_URL
rolled_back in T: 1.1 on 3 of 3 nodes, the old instance never stopped serving
why: smgr rollout show ID
",
            names[0]
        )
    );
    is_over.store(true, Ordering::Relaxed);
    for asker in askers {
        let heard = asker.join().unwrap();
        let last = heard.last().map(String::as_str);
        assert!(heard.len() > 100 && last == Some("shop 1.1"), "{}, {last:?}", heard.len());
        assert!(heard.iter().all(|it| ["shop 1.0", "shop 1.1"].contains(&it.as_str())));
    }
    minute.types(0, "rollback web");
    assert_eq!(ask(&sockets[0]).unwrap(), "shop 1.0");
}

/// Returns the nodes in the order of the last rollout's waves, which are as many.
fn nodes(minute: &Minute, waves: usize) -> String {
    let list = minute.fleet.machine.json(&["rollout", "list"]);
    let name = list["rollouts"][0]["rollout"].as_str().unwrap().to_owned();
    let view = minute.fleet.machine.json(&["rollout", "show", &name]);
    assert_eq!(view["plan"]["waves"].as_array().unwrap().len(), waves, "{view}");
    let names = view["nodes"].as_array().unwrap().iter();
    let names: Vec<&str> = names.map(|node| node["node"].as_str().unwrap()).collect();
    names.join(" ")
}

#[test]
fn the_demo_goes_into_no_folder_that_has_something_in_it() {
    let fleet = Fleet::new();
    let folder = fleet.machine.folder().join("shop");
    fs::create_dir(&folder).unwrap();
    fleet.machine.exits(0, &["demo"]);
    let before = fs::read(folder.join("web.toml")).unwrap();
    let said = fleet.machine.exits(6, &["demo", "shop"]);
    assert!(said.contains("not empty") && said.contains("smgr demo shop2"), "{said}");
    assert_eq!(fs::read(folder.join("web.toml")).unwrap(), before);
    fleet.machine.exits(0, &["check", "shop/web.toml"]);
}
