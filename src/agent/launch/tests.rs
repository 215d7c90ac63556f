//! Starts prepared on real files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::domain::code::Code;
use crate::domain::spec::{Action, Credential, CredentialSource, Param};

struct Node {
    dir: TempDir,
    launcher: Launcher,
    spec: Spec,
    instance: InstanceId,
}

fn text(text: &str) -> Template {
    Template::new(text)
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let facts = NodeFacts {
            node: "n1".parse().unwrap(),
            fleet: "acme".parse().unwrap(),
            runtime_dir: dir.path().join("run/runtime"),
            releases_dir: dir.path().join("releases"),
            keeper_is_root: rustix::process::geteuid().is_root(),
            path: PATH_DEFAULT.to_owned(),
        };
        let exec = vec![text("/bin/web"), text("--slot=${service}/${instance}")];
        let mut spec = Spec::new(exec, text("/"), text("/log/${service}/${instance}"));
        let own = rustix::process::geteuid().as_raw();
        let group = Some(rustix::process::getegid().as_raw().to_string());
        spec.user = Some(spec::Account { user: own.to_string(), group });
        let instance = InstanceId { service: "web".parse().unwrap(), index: 1 };
        Self { dir, launcher: Launcher::new(facts), spec, instance }
    }

    fn prepare(&mut self) -> Result<Launch, LaunchFault> {
        let start = Start { spec: &self.spec, instance: &self.instance, run: RunId(7) };
        self.launcher.service(start, vec![1, 2])
    }

    fn env(&mut self) -> BTreeMap<String, String> {
        self.prepare().unwrap().spawn.env.into_iter().collect()
    }

    fn secret(&mut self, env: Option<&str>) {
        let path = self.dir.path().join("secret");
        fs::write(&path, "hunter2\n").unwrap();
        let source = CredentialSource::File(Template::literal(path.to_str().unwrap()));
        let credential = Credential { source, env: env.map(str::to_owned) };
        self.spec.credential.insert("database-url".to_owned(), credential);
    }
}

#[test]
fn a_start_is_complete() {
    let mut node = Node::new();
    let Launch { spawn, degraded } = node.prepare().unwrap();
    assert_eq!((spawn.run.as_str(), spawn.slot.as_str()), ("web.1.7", "web.1"));
    assert_eq!(spawn.argv, ["/bin/web", "--slot=web/1"]);
    assert_eq!((spawn.umask, spawn.oom_score_adjust, &spawn.memo[..]), (0o022, 0, &[1, 2][..]));
    assert!(spawn.no_new_privileges && !spawn.notify && spawn.ready_fd.is_none());
    let files = spawn.limits.iter().find(|limit| limit.resource == Resource::Files).unwrap();
    assert!(files.soft <= FILES_DEFAULT && files.soft <= files.hard);
    assert!(degraded.is_empty());
    assert!(!node.dir.path().join("run").exists(), "a folder is made only where it is used");
}

#[test]
fn the_environment_is_clean_and_the_nearest_source_wins() {
    let mut node = Node::new();
    let file = node.dir.path().join("web.env");
    fs::write(&file, "A=file\nB=file\nLANG=de\n").unwrap();
    node.spec.env_files = vec![Template::literal(file.to_str().unwrap())];
    node.spec.env.insert("B".to_owned(), text("spec of ${service}"));
    node.spec.env.insert("SMGR_SERVICE".to_owned(), text("forged"));
    let env = node.env();
    let get = |name: &str| env.get(name).map(String::as_str);
    assert_eq!((get("A"), get("B"), get("LANG")), (Some("file"), Some("spec of web"), Some("de")));
    assert_eq!((get("SMGR_SERVICE"), get("SMGR_INSTANCE")), (Some("web"), Some("1")));
    assert_eq!((get("SMGR_NODE"), get("PATH")), (Some("n1"), Some(PATH_DEFAULT)));
    let foreign = ["CARGO", "CARGO_PKG_NAME", "RUST_BACKTRACE", "NEXTEST"];
    assert!(foreign.iter().all(|name| get(name).is_none()));
}

#[test]
fn a_missing_environment_file_is_a_fault_that_names_it() {
    let mut node = Node::new();
    node.spec.env_files = vec![text("/nonexistent/web.env")];
    let fault = node.prepare().unwrap_err();
    assert_eq!(fault.step, "environment");
    assert!(fault.why.contains("/nonexistent/web.env"), "{fault}");
}

#[test]
fn what_is_no_regular_file_is_a_fault_and_keeps_nobody_waiting() {
    let mut node = Node::new();
    let fifo = node.dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let path = Template::literal(fifo.to_str().unwrap());
    node.spec.env_files = vec![path.clone()];
    let fault = node.prepare().unwrap_err();
    assert_eq!(fault.step, "environment");
    assert!(fault.why.contains("not a regular file"), "{fault}");
    node.spec.env_files.clear();
    let credential = Credential { source: CredentialSource::File(path), env: None };
    node.spec.credential.insert("token".to_owned(), credential);
    let fault = node.prepare().unwrap_err();
    assert_eq!(fault.step, "credential");
    assert!(fault.why.contains("not a regular file"), "{fault}");
}

#[test]
fn a_credential_is_a_file_for_the_account_alone_and_goes_with_its_run() {
    let mut node = Node::new();
    node.secret(Some("DATABASE_URL"));
    let env = node.env();
    let folder = node.dir.path().join("run/runtime/web.1.7");
    assert_eq!(env["CREDENTIALS_DIRECTORY"], folder.join("credentials").to_str().unwrap());
    assert_eq!(env["DATABASE_URL"], "hunter2");
    let about = fs::metadata(folder.join("credentials/database-url")).unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o400);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read(folder.join("credentials/database-url")).unwrap(), b"hunter2\n");
    let run = run_name(&node.instance, RunId(7));
    node.launcher.clean_up(&run).unwrap();
    assert!(!folder.exists());
    node.launcher.clean_up(&run).unwrap();
}

#[test]
fn a_credential_that_cannot_be_read_is_a_fault_and_leaves_nothing() {
    let mut node = Node::new();
    node.secret(None);
    fs::remove_file(node.dir.path().join("secret")).unwrap();
    let fault = node.prepare().unwrap_err();
    assert_eq!((fault.step, fault.errno), ("credential", 2));
    assert!(!node.dir.path().join("run/runtime/web.1.7").exists());
}

#[test]
fn root_hands_the_folder_and_the_credentials_to_the_account() {
    if !rustix::process::geteuid().is_root() {
        use std::io::Write;
        std::io::stderr().write_all(b"skipped: only root can give files away\n").unwrap();
        return;
    }
    let mut node = Node::new();
    node.spec.user = Some("65534:65534".split_once(':').map(account_of).unwrap());
    node.secret(None);
    let launch = node.prepare().unwrap();
    let folder = node.dir.path().join("run/runtime/web.1.7");
    for path in ["", "credentials", "credentials/database-url"] {
        assert_eq!(fs::metadata(folder.join(path)).unwrap().uid(), 65534, "{path}");
    }
    assert!(launch.degraded.is_empty(), "{:?}", launch.degraded);
    fs::set_permissions(node.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let closed = node.prepare().unwrap().degraded;
    assert!(closed[0].key == "runtime" && closed[0].why.contains("closed"), "{closed:?}");
}

fn account_of((user, group): (&str, &str)) -> spec::Account {
    spec::Account { user: user.to_owned(), group: Some(group.to_owned()) }
}

#[test]
fn an_owner_can_let_one_account_read_without_being_root() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "x").unwrap();
    match acl::share(&path, 12345, acl::Access::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => return,
        shared => shared.unwrap(),
    }
    // The group bits show the mask of the list; the group itself has no access.
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);
}

#[test]
fn the_folder_of_a_run_is_its_own() {
    let mut node = Node::new();
    node.spec.exec.push(text("${runtime}/admin.sock"));
    let argv = node.prepare().unwrap().spawn.argv;
    let folder = node.dir.path().join("run/runtime/web.1.7");
    assert_eq!(argv[2], folder.join("admin.sock").to_str().unwrap());
    fs::write(folder.join("left over"), "x").unwrap();
    node.prepare().unwrap();
    assert!(!folder.join("left over").exists(), "it is empty at each start");
    let other = run_name(&node.instance, RunId(8));
    node.launcher.clean_up_but(&[other].into()).unwrap();
    assert!(!folder.exists());
}

#[test]
fn a_name_that_is_not_known_here_is_a_fault() {
    let mut node = Node::new();
    node.spec.exec.push(text("${zone}"));
    let fault = node.prepare().unwrap_err();
    assert_eq!((fault.step, fault.errno), ("exec", 0));
    node.spec.exec.pop();
    node.spec.working_dir = text("relative/${service}");
    assert_eq!(node.prepare().unwrap_err().step, "working_dir");
}

#[test]
fn the_values_of_an_action_reach_its_argv() {
    let mut node = Node::new();
    let name: ActionName = "cache-clear".parse().unwrap();
    let mut action = Action::new(vec![text("/bin/webctl"), text("--zone=${zone}")]);
    let zone =
        Param::String { pattern: Some("[a-z]+".to_owned()), default: Some("all".to_owned()) };
    action.params.insert("zone".to_owned(), zone);
    node.spec.action.insert(name.clone(), action);
    let given = |value: &str| BTreeMap::from([("zone".to_owned(), value.to_owned())]);

    let refusal = bind_action(&node.spec, &name, &given("img; rm")).unwrap_err();
    assert_eq!(refusal.code(), Code::BAD_PARAMETER);
    let unknown = bind_action(&node.spec, &"clear".parse().unwrap(), &given("img")).unwrap_err();
    assert_eq!(unknown.code(), Code::NO_SUCH_ACTION);

    let values = bind_action(&node.spec, &name, &given("img")).unwrap();
    let start = Start { spec: &node.spec, instance: &node.instance, run: RunId(7) };
    let run: RunName = "act.1".parse().unwrap();
    let launch = node.launcher.action(start, run.clone(), &name, &values, Vec::new()).unwrap();
    assert_eq!(launch.spawn.argv, ["/bin/webctl", "--zone=img"]);
    assert_eq!((launch.spawn.run, launch.spawn.slot.as_str()), (run, "web.1"));
}

#[test]
fn the_log_of_each_instance_has_a_folder_of_its_own() {
    let node = Node::new();
    let dir = node.launcher.log_dir(&node.spec, &node.instance).unwrap();
    assert_eq!(dir, PathBuf::from("/log/web/1"));
}

#[test]
fn preparing_a_start_is_cheap() {
    let mut node = Node::new();
    node.prepare().unwrap();
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            node.prepare().unwrap();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let shown = format!("a start is prepared in {:?}\n", times[100]);
    std::io::Write::write_all(&mut std::io::stderr(), shown.as_bytes()).unwrap();
    // Ten times what is wanted, since this is a build for tests on a shared machine.
    assert!(times[100].as_micros() < 1000, "{:?}", times[100]);
}
