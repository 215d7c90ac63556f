//! The nats-server of one machine: found, never downloaded, and supervised like every other service.

mod authority;

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::fs::DirBuilder;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::error::CliError;
use crate::agent::setup::{BUS_SERVICE, BusSetup};
use crate::bus::{
    SERVER_VERSION_FLOOR, ServerVersion, artifact_bucket_name, event_stream_name, lease_bucket_name,
};
use crate::domain::code::Code;
use crate::domain::id::{FleetId, NodeId, Principal};
use crate::domain::policy::KeyClass;
use crate::head::folder::{StateFolder, write_new, write_whole};
use crate::wire::key::Keyring;
use crate::wire::subject::{EVERY_INBOX, InboxPrefix, all_of};

/// The port that is taken when it is free, because people expect it there.
const PORT: u16 = 4222;

/// How long the server waits for the handshake of a client, in seconds. As long as a client waits for the server: when a
/// whole fleet comes back at once, all of them shake hands.
const HANDSHAKE_S: u8 = 5;

/// A server that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The program.
    pub program: PathBuf,
    /// What it says it is.
    pub version: ServerVersion,
}

impl Found {
    /// Says whether an account, by its user and group, may execute it.
    pub fn runs_as(&self, (uid, gid): (u32, u32)) -> bool {
        let mut command = Command::new(&self.program);
        command.arg("--version").uid(uid).gid(gid).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

/// Finds a recent nats-server: what `SMGR_NATS_SERVER` names, else one in PATH. `SMGR_NATS_SERVER=off` is none.
///
/// # Errors
/// When the one that was named cannot be used: what was asked for is never silently something else.
pub fn find() -> Result<Option<Found>, CliError> {
    match std::env::var_os("SMGR_NATS_SERVER").filter(|named| !named.is_empty()) {
        Some(off) if off == "off" => Ok(None),
        Some(named) => {
            let program = PathBuf::from(named);
            let version = version_of(&program).filter(|version| *version >= SERVER_VERSION_FLOOR);
            version.map(|version| Some(Found { program: program.clone(), version })).ok_or_else(|| {
                CliError::new(
                    Code::NO_NATS_SERVER,
                    format!("SMGR_NATS_SERVER names no nats-server of {SERVER_VERSION_FLOOR} or later"),
                )
                .at(program.display().to_string())
            })
        }
        None => Ok(in_path("nats-server").and_then(|program| {
            let version = version_of(&program)?;
            (version >= SERVER_VERSION_FLOOR).then_some(Found { program, version })
        })),
    }
}

/// Says whether somebody wants no server of ours.
pub fn is_off() -> bool {
    std::env::var_os("SMGR_NATS_SERVER").is_some_and(|named| named == "off")
}

/// Returns the file that a bare command name stands for.
pub fn in_path(name: &str) -> Option<PathBuf> {
    use rustix::fs::{Access, access};
    let path = std::env::var_os("PATH")?;
    let runs = |file: &PathBuf| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(runs)
}

fn version_of(program: &Path) -> Option<ServerVersion> {
    let ran = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.trim_start_matches('v').parse().ok())
}

/// Who uses the bus of a machine, and so what its server lets each user say and hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The fleet.
    pub fleet: FleetId,
    /// The node, whose uplink is one user.
    pub node: NodeId,
    /// The other nodes and the controllers of the fleet: each is one user.
    pub others: Vec<Other>,
    /// Where other machines reach the server; `None` is the loopback alone, at a port that is free.
    pub listen: Option<SocketAddr>,
    /// By which names they reach it besides, where it is encrypted; `None` is a bus in clear.
    pub encrypted: Option<BTreeSet<String>>,
    /// Those who command it, who are the other.
    pub people: Vec<Principal>,
}

/// A node or controller with a key of its own for the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub name: NodeId,
    /// By which the server knows it.
    pub nkey: UserKey,
    /// Whether it is a controller.
    pub is_controller: bool,
}

/// The key of a user of the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserKey {
    /// The file of its NKey seed on this machine, made where there is none.
    Seed(PathBuf),
    /// A public NKey, whose seed is on another machine.
    Public(String),
}

impl Members {
    /// Returns the members that a trust document names.
    pub fn of(fleet: FleetId, node: NodeId, ring: &Keyring) -> Self {
        let commands = |class| match class {
            KeyClass::Human | KeyClass::Ci | KeyClass::Local | KeyClass::Controller => true,
            KeyClass::Root | KeyClass::Node => false,
        };
        let holders = ring.iter().filter(|(_, holder)| commands(holder.class));
        let people: BTreeSet<_> = holders.map(|(_, holder)| holder.name.clone()).collect();
        let people = people.into_iter().collect();
        Self { fleet, node, others: Vec::new(), listen: None, encrypted: None, people }
    }

    /// What it takes to read an object of the store of artifacts.
    fn reads_artifacts(&self) -> Vec<String> {
        let stream = format!("OBJ_{}", artifact_bucket_name(&self.fleet));
        vec![
            format!("$JS.API.STREAM.INFO.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
            format!("$JS.API.CONSUMER.CREATE.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.INFO.{stream}.*"),
            format!("$JS.FC.{stream}.>"),
        ]
    }

    /// What it takes besides to put one, and to delete others that it may have room.
    fn writes_artifacts(&self) -> Vec<String> {
        let bucket = artifact_bucket_name(&self.fleet);
        vec![
            format!("$O.{bucket}.>"),
            format!("$JS.API.STREAM.CREATE.OBJ_{bucket}"),
            format!("$JS.API.STREAM.PURGE.OBJ_{bucket}"),
        ]
    }

    /// A node says what happens and answers whoever asked, keeps the stream over its events, and fetches what it is to run.
    fn uplink(&self, node: &NodeId) -> Permissions {
        let inbox = inbox_of(node);
        let stream = event_stream_name(&self.fleet);
        let api = |verb| format!("$JS.API.STREAM.{verb}.{stream}");
        let keeps = ["CREATE", "UPDATE", "INFO"].map(api);
        Permissions {
            publish: [all_of(&self.fleet), EVERY_INBOX.to_owned()]
                .into_iter()
                .chain(keeps)
                .chain(self.reads_artifacts())
                .collect(),
            subscribe: vec![all_of(&self.fleet), format!("{inbox}.>")],
        }
    }

    /// A controller asks and listens like people, answers like a node, and keeps its streams and its lease.
    fn controller(&self, controller: &NodeId) -> Permissions {
        let inbox = inbox_of(controller);
        Permissions {
            publish: ["$JS.API.>", "$JS.ACK.>", "$JS.FC.>", EVERY_INBOX]
                .map(str::to_owned)
                .into_iter()
                .chain([all_of(&self.fleet), format!("$KV.{}.>", lease_bucket_name(&self.fleet))])
                .collect(),
            subscribe: vec![all_of(&self.fleet), format!("{inbox}.>")],
        }
    }

    /// People ask, listen, are answered at inboxes of their own, read the stream over the events, and put artifacts.
    fn operator(&self) -> Permissions {
        let stream = event_stream_name(&self.fleet);
        let reads = [
            format!("$JS.API.STREAM.INFO.{stream}"),
            format!("$JS.API.STREAM.MSG.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
            format!("$JS.API.CONSUMER.*.{stream}"),
            format!("$JS.API.CONSUMER.*.{stream}.>"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
            format!("$JS.ACK.{stream}.>"),
            format!("$JS.FC.{stream}.>"),
        ];
        let inboxes = self.people.iter().map(|name| format!("{}.>", InboxPrefix(name.clone())));
        Permissions {
            publish: [all_of(&self.fleet)]
                .into_iter()
                .chain(reads)
                .chain(self.reads_artifacts())
                .chain(self.writes_artifacts())
                .collect(),
            subscribe: [all_of(&self.fleet)].into_iter().chain(inboxes).collect(),
        }
    }
}

fn inbox_of(name: &NodeId) -> InboxPrefix {
    InboxPrefix(name.as_str().parse().expect("a node's name is a principal's"))
}

/// What a user of the bus may do.
struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// Writes what the server needs and the spec of its service. Called again, it keeps port and keys.
///
/// # Errors
/// When the disk refuses.
pub fn prepare(
    folder: &StateFolder,
    found: &Found,
    before: Option<&BusSetup>,
    members: &Members,
    user: Option<&str>,
) -> Result<BusSetup, CliError> {
    let write = |error: io::Error| {
        CliError::caused(Code::IO, "failed to write the set-up of the bus", &error)
            .at(folder.root().display().to_string())
    };
    let config = folder.bus_config();
    let before = before.filter(|bus| bus.own_server).and_then(port_of);
    // A port that is taken is ours only where a server outlived the parts that supervised it.
    let kept = before.filter(|port| claim(*port) && is_free(*port) || is_in_use(&config));
    let at = match members.listen {
        Some(listen) => listen,
        None => {
            let port = kept.or_else(free_port);
            let port =
                port.ok_or_else(|| CliError::new(Code::IO, "no port is free for the bus"))?;
            (Ipv4Addr::LOCALHOST, port).into()
        }
    };
    let (node, operator) = (folder.keys().join("node.nk"), folder.keys().join("operator.nk"));
    let mut users = vec![
        (public_nkey(&node)?, members.uplink(&members.node)),
        (public_nkey(&operator)?, members.operator()),
    ];
    for Other { name, nkey, is_controller } in &members.others {
        let may = if *is_controller { members.controller(name) } else { members.uplink(name) };
        let key = match nkey {
            UserKey::Seed(path) => public_nkey(path)?,
            UserKey::Public(key) => key.clone(),
        };
        users.push((key, may));
    }
    let store = folder.bus_store();
    DirBuilder::new().recursive(true).mode(0o700).create(&store).map_err(write)?;
    std::fs::create_dir_all(folder.internal_services()).map_err(write)?;
    if let Some(names) = &members.encrypted {
        authority::vouch(folder, at.ip(), names)?;
    }
    let is_encrypted = members.encrypted.is_some();
    let mut text = server_config(at, &store, &users);
    if is_encrypted {
        text.push_str(&encryption(&folder.bus_certificate()));
    }
    write_whole(&config, text.as_bytes(), 0o600).map_err(write)?;
    let spec = folder.internal_services().join(format!("{}.toml", *BUS_SERVICE));
    let text = service_spec(&found.program, &config, user);
    write_whole(&spec, text.as_bytes(), 0o600).map_err(write)?;
    Ok(BusSetup {
        urls: vec![url(is_encrypted, reached_here(at))],
        nkey: Some(node),
        operator_nkey: Some(operator),
        own_server: true,
        ca: is_encrypted.then(|| folder.bus_ca()),
    })
}

/// Returns the url of a server.
pub fn url(is_encrypted: bool, at: impl Display) -> String {
    format!("{}://{at}", if is_encrypted { "tls" } else { "nats" })
}

/// Returns where this machine reaches a server that listens there.
fn reached_here(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => (Ipv4Addr::LOCALHOST, listen.port()).into(),
        false => listen,
    }
}

/// Returns the port of a bus of our own.
pub fn port_of(bus: &BusSetup) -> Option<u16> {
    bus.urls.first()?.rsplit_once(':')?.1.parse().ok()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Says whether a process was started with this configuration file.
fn is_in_use(config: &Path) -> bool {
    let names_it = |process: std::fs::DirEntry| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_encoded_bytes())
    };
    std::fs::read_dir("/proc").is_ok_and(|processes| processes.flatten().any(names_it))
}

/// Another program may take it before the server does; then the server's log says so and the next `up` finds another.
fn free_port() -> Option<u16> {
    if claim(PORT) && is_free(PORT) {
        return Some(PORT);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    listener.local_addr().ok().map(|address| address.port())
}

/// The ports that this process chose, until it ends.
static CLAIMS: Mutex<Vec<(u16, UnixListener)>> = Mutex::new(Vec::new());

/// Claims a port, so that two `smgr up` at once do not both choose it: the server binds it only later.
fn claim(port: u16) -> bool {
    let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
    if claims.iter().any(|(claimed, _)| *claimed == port) {
        return true;
    }
    let name = format!("smgr-bus-port-{port}");
    let bound = UnixAddr::from_abstract_name(name).and_then(|at| UnixListener::bind_addr(&at));
    bound.map(|listener| claims.push((port, listener))).is_ok()
}

fn server_config(listen: SocketAddr, store: &Path, users: &[(String, Permissions)]) -> String {
    let mut text = format!(
        "# Written by `smgr up`; changes are overwritten.\n\
         listen: \"{listen}\"\n\
         server_name: \"smgr\"\n\
         max_payload: 1MB\n\
         jetstream {{\n  store_dir: {store}\n  max_memory_store: 16MB\n  max_file_store: 4GB\n}}\n\
         authorization {{\n  users: [\n",
        store = quoted(store),
    );
    let list = |subjects: &[String]| {
        let quoted: Vec<_> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
        quoted.join(", ")
    };
    for (user, Permissions { publish, subscribe }) in users {
        let (publish, subscribe) = (list(publish), list(subscribe));
        writeln!(
            text,
            "    {{ nkey: {user}, permissions: {{\n      publish: {{ allow: [{publish}] }}\n      \
             subscribe: {{ allow: [{subscribe}] }}\n    }} }}"
        )
        .expect("a text takes every write");
    }
    text.push_str("  ]\n}\n");
    text
}

/// The handshake comes before the first word of the server, so that nobody between can talk a client out of it.
fn encryption(certificate: &Path) -> String {
    let file = quoted(certificate);
    format!(
        "tls {{\n  cert_file: {file}\n  key_file: {file}\n  min_version: \"1.3\"\n  handshake_first: true\n  \
         timeout: {HANDSHAKE_S}\n}}\n"
    )
}

fn service_spec(program: &Path, config: &Path, user: Option<&str>) -> String {
    let exec = format!("[{}, \"-c\", {}]", argument(program), argument(config));
    let user = user.map(|name| format!("user = \"{name}\"\n")).unwrap_or_default();
    format!(
        "# Written by `smgr up`; changes are overwritten.\n\
         description = \"The bus of this machine\"\n\
         exec = {exec}\n\
         working_dir = \"/\"\n{user}\n\
         [ready]\nby = \"log\"\nmatch = \"Server is ready\"\n"
    )
}

/// Writes a path as an argument in a spec, where `$` begins a substitution.
pub fn argument(path: &Path) -> String {
    quoted(path).replace('$', "$$")
}

/// Writes a path as a string of TOML, which nats-server reads alike.
fn quoted(path: &Path) -> String {
    toml_edit::Value::from(path.display().to_string()).to_string().trim().to_owned()
}

/// Says whether a text is a public NKey of a user.
pub fn is_public_nkey(text: &str) -> bool {
    nkey::is_public(text)
}

/// Returns the public NKey of a user, and makes its seed where there is none.
///
/// # Errors
/// When it cannot be read or made, or is damaged.
pub fn public_nkey(path: &Path) -> Result<String, CliError> {
    let io = |error: io::Error| {
        CliError::caused(Code::IO, "failed to make a key for the bus", &error)
            .at(path.display().to_string())
    };
    if !path.exists() {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| io(error.into()))?;
        write_new(path, format!("{}\n", nkey::seed(&seed)).as_bytes(), 0o600).map_err(io)?;
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    nkey::public(text.trim()).ok_or_else(|| {
        CliError::new(Code::BUS_REFUSED, "the key for the bus is damaged")
            .at(path.display().to_string())
            .hint("remove it and run `smgr up` again: a new one is made")
    })
}

/// The text form of NATS keys: base 32 over prefix, key and a CRC-16.
mod nkey {
    use crate::wire::key::Signer;

    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const SEED: u8 = 18 << 3; // `S`
    const USER: u8 = 20 << 3; // `U`

    /// Returns the text of a user's seed: `SU…`.
    pub(super) fn seed(seed: &[u8; 32]) -> String {
        let head = [SEED | (USER >> 5), (USER & 31) << 3];
        encode(&[&head[..], seed].concat())
    }

    /// Returns the public key of a user's seed: `U…`.
    pub(super) fn public(text: &str) -> Option<String> {
        let raw = decode(text)?;
        let (head, seed) = raw.split_at_checked(2)?;
        let seed: &[u8; 32] = seed.try_into().ok()?;
        if head != [SEED | (USER >> 5), (USER & 31) << 3] {
            return None;
        }
        let public = Signer::from_seed(seed).public().to_bytes();
        Some(encode(&[&[USER][..], &public].concat()))
    }

    /// Says whether a text is the public key of a user.
    pub(super) fn is_public(text: &str) -> bool {
        decode(text).is_some_and(|raw| raw.len() == 33 && raw[0] == USER)
    }

    fn encode(raw: &[u8]) -> String {
        let crc = crc16(raw).to_le_bytes();
        let (mut text, mut bits, mut held) = (String::new(), 0_u32, 0_u32);
        for byte in raw.iter().chain(&crc) {
            held = held << 8 | u32::from(*byte);
            bits += 8;
            while bits >= 5 {
                bits -= 5;
                text.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
            }
        }
        if bits > 0 {
            text.push(char::from(ALPHABET[(held << (5 - bits) & 31) as usize]));
        }
        text
    }

    fn decode(text: &str) -> Option<Vec<u8>> {
        let (mut raw, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
        for letter in text.bytes() {
            let value = ALPHABET.iter().position(|known| *known == letter)?;
            held = held << 5 | u32::try_from(value).ok()?;
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                raw.push((held >> bits & 255) as u8);
            }
        }
        let crc = raw.split_off(raw.len().checked_sub(2)?);
        (crc == crc16(&raw).to_le_bytes()).then_some(raw)
    }

    /// CRC-16/XMODEM.
    fn crc16(bytes: &[u8]) -> u16 {
        bytes.iter().fold(0, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_seed_has_the_form_that_nats_gives_it() {
            // A published example pair of a user.
            let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
            let public = public(seed).unwrap();
            assert!(public.starts_with('U') && public.len() == 56);
            assert_eq!(super::seed(&decode(seed).unwrap()[2..].try_into().unwrap()), seed);
        }

        #[test]
        fn a_damaged_seed_is_none() {
            let text = seed(&[7; 32]);
            assert!(public(&text).is_some());
            assert!(public(&text.replacen('A', "B", 1)).is_none());
            assert!(public(&text[1..]).is_none());
            assert!(public("").is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        let (fleet, node) = ("local".parse().unwrap(), "n1".parse().unwrap());
        let people = vec!["ana".parse().unwrap()];
        Members { fleet, node, others: Vec::new(), listen: None, encrypted: None, people }
    }

    #[test]
    fn a_user_of_the_bus_may_say_and_hear_what_its_fleet_needs_and_nothing_else() {
        for Permissions { publish, subscribe } in
            [members().uplink(&members().node), members().operator()]
        {
            assert!(publish[0].ends_with(".local.>") && subscribe[0] == publish[0]);
            let all = || publish.iter().chain(&subscribe);
            assert!(all().all(|subject| !subject.starts_with('>') && !subject.starts_with('*')));
            assert!(all().all(|subject| !subject.contains("DELETE")));
            // Old artifacts make room for new ones, when people put those; no history is purged by anybody.
            let purges: Vec<_> = all().filter(|subject| subject.contains("PURGE")).collect();
            let store = "$JS.API.STREAM.PURGE.OBJ_smgr-artifacts-local";
            assert!(purges.iter().all(|subject| *subject == store), "{purges:?}");
        }
        let may_purge = |subject: &String| subject.contains("PURGE");
        assert!(!members().uplink(&members().node).publish.iter().any(may_purge));
        assert!(!members().operator().subscribe.contains(&EVERY_INBOX.to_owned()));
    }

    #[test]
    fn a_port_that_somebody_else_took_meanwhile_is_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        folder.make().unwrap();
        let found = Found { program: "/bin/nats-server".into(), version: SERVER_VERSION_FLOOR };
        let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut before = prepare(&folder, &found, None, &members(), None).unwrap();
        before.urls = vec![format!("nats://{}", somebody.local_addr().unwrap())];
        let after = prepare(&folder, &found, Some(&before), &members(), None).unwrap();
        assert_ne!(port_of(&before), port_of(&after));
    }

    #[test]
    fn a_bus_keeps_its_port_and_its_keys() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        folder.make().unwrap();
        let version = SERVER_VERSION_FLOOR;
        let found = Found { program: "/usr/bin/nats-server".into(), version };
        let first = prepare(&folder, &found, None, &members(), None).unwrap();
        let key = std::fs::read(folder.keys().join("node.nk")).unwrap();
        let again = prepare(&folder, &found, Some(&first), &members(), None).unwrap();
        assert_eq!(first, again);
        assert_eq!(key, std::fs::read(folder.keys().join("node.nk")).unwrap());
    }
}
