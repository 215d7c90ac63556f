//! The bus between machines is encrypted: who is served, who vouches for it, and what stays in clear.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
};

use super::Fleet;
use super::machines::{enrol, free_address, nodes, open, open_fleet, tell};
use crate::support::machine::Machine;
use crate::support::nats::NatsServer;
use crate::support::wait::{eventually, wait_until};
use crate::support::web::certificate;

/// Longer than the server waits for a handshake.
const PATIENCE: Duration = Duration::from_secs(20);

/// Some second of the year 2026.
const TODAY: u64 = 1_795_000_000;

/// Returns how a machine reaches its bus.
fn bus(machine: &Machine) -> Value {
    let text = fs::read_to_string(machine.state().join("node.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["bus"].clone()
}

fn url(machine: &Machine) -> String {
    bus(machine)["urls"][0].as_str().unwrap().to_owned()
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

fn hears_of(fleet: &Fleet, name: &str) {
    wait_until("the controller knows it", || nodes(fleet).contains(&(name.to_owned(), true)));
}

/// A clock that stands.
#[derive(Debug)]
struct Clock(u64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

/// Somebody who trusts the authority of a fleet.
struct Client {
    ca: std::path::PathBuf,
    name: &'static str,
    now: u64,
    version: &'static SupportedProtocolVersion,
}

impl Client {
    fn of(fleet: &Fleet) -> Self {
        let ca = fleet.machine.state().join("bus-ca.pem");
        Self { ca, name: "localhost", now: TODAY, version: &TLS13 }
    }

    /// Returns the certificate that it is shown, or why it does not take it.
    fn shakes_hands(&self, port: u16) -> Result<Vec<u8>, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
        let (provider, clock) = (Arc::new(ring::default_provider()), Arc::new(Clock(self.now)));
        let config = ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.name).unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut tcp = TcpStream::connect(("127.0.0.1", port)).map_err(|why| why.to_string())?;
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).map_err(|why| why.to_string())?;
        }
        Ok(tls.peer_certificates().unwrap()[0].to_vec())
    }
}

#[test]
fn only_who_shakes_hands_first_is_served_whatever_its_clock_says() {
    let fleet = open_fleet();
    let port = port(&url(&fleet.machine));
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(b"CONNECT {\"verbose\":true}\r\nPING\r\n").unwrap();
    let mut heard = Vec::new();
    let _reset = tcp.read_to_end(&mut heard);
    let says = |word: &[u8]| heard.windows(word.len()).any(|it| it == word);
    assert!(!says(b"INFO") && !says(b"OK") && !says(b"PONG"), "{heard:?}");

    let of = || Client::of(&fleet);
    for name in ["localhost", "127.0.0.1"] {
        // 1970, today, and when nobody remembers the fleet.
        for now in [1, TODAY, 4_000_000_000] {
            let shown = Client { name, now, ..of() }.shakes_hands(port);
            assert!(shown.is_ok(), "{name} at {now}: {shown:?}");
        }
    }
    let other = Client { name: "bus.example.com", ..of() }.shakes_hands(port).unwrap_err();
    assert!(other.contains("not valid for name"), "{other}");
    let old = Client { version: &TLS12, ..of() }.shakes_hands(port).unwrap_err();
    assert!(old.contains("ProtocolVersion"), "{old}");
    let stranger = Client { ca: certificate("stranger.pem"), ..of() }.shakes_hands(port);
    assert!(stranger.unwrap_err().contains("UnknownIssuer"));
}

#[test]
fn the_bus_is_known_by_each_name_by_which_a_node_was_told_to_reach_it() {
    let fleet = open_fleet();
    let port = port(&url(&fleet.machine));
    let client = Client { name: "bus.example.com", ..Client::of(&fleet) };
    let (request, _) = tell(&Machine::new(), 0, &["node", "request", "--name", "web-1"], "");
    let admit =
        |code, url: &str| tell(&fleet.machine, code, &["node", "admit", "--url", url], &request);
    let (_, err) = admit(2, "nats://bus.example.com:4222");
    assert!(err.contains("is encrypted") && err.contains("--url tls://HOST"), "{err}");
    assert!(client.shakes_hands(port).is_err());
    let (welcome, _) = admit(0, &format!("tls://bus.example.com:{port}"));
    let welcome: Value = serde_json::from_str(&welcome).unwrap();
    assert_eq!(welcome["urls"][0], format!("tls://bus.example.com:{port}"));
    let pem = fs::read_to_string(&client.ca).unwrap();
    assert_eq!(welcome["ca"], pem);
    wait_until("the server shows the new one", || client.shakes_hands(port).is_ok());
    fleet.machine.exits(0, &["down"]);
    fleet.up_again();
    client.shakes_hands(port).unwrap();
}

#[test]
fn a_bus_that_begins_anew_has_another_key_and_those_who_joined_find_it_by_its_authority() {
    let fleet = open_fleet();
    let web = Machine::new();
    enrol(&fleet, &web, "web-1", &[]);
    web.exits(0, &["up", "-d"]);
    hears_of(&fleet, "web-1");
    assert!(url(&web).starts_with("tls://"));
    assert_eq!(bus(&web)["ca"], web.state().join("bus-ca.pem").display().to_string());
    let port = port(&url(&web));
    let before = Client::of(&fleet).shakes_hands(port).unwrap();
    fleet.machine.exits(0, &["down"]);
    fleet.up_again();
    hears_of(&fleet, "web-1");
    let pongs = fleet.machine.exits(0, &["ping", "--node", "web-1"]);
    assert!(pongs.contains("web-1"), "{pongs}");
    // As it was pinned when it joined.
    let pinned = Client { ca: web.state().join("bus-ca.pem"), ..Client::of(&fleet) };
    assert_ne!(pinned.shakes_hands(port).unwrap(), before);
}

/// Returns a machine that has the identity of whoever runs the fleet and nothing else, as a CI job does.
fn job(fleet: &Fleet) -> Machine {
    let machine = Machine::new();
    for file in
        ["trust.smgr", "root.pub", "keys/operator.key", "keys/operator.pub", "keys/operator.nk"]
    {
        let to = machine.state().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fleet.machine.state().join(file), to).unwrap();
    }
    machine
}

#[test]
fn a_client_that_nobody_vouches_to_is_told_what_was_tried_and_what_it_lacks() {
    let fleet = open_fleet();
    let url = url(&fleet.machine);
    let job = job(&fleet);
    let ping = |code, url: &str| job.exits(code, &["ping", "--node", "n1", "--bus", url]);
    let ca = job.state().join("bus-ca.pem");
    let said = ping(5, &url);
    assert!(said.contains(&url) && said.contains("bus-ca.pem"), "{said}");
    fs::copy(certificate("stranger.pem"), &ca).unwrap();
    let said = ping(5, &url);
    let tried = format!("the bus at {url}, for which {} has to vouch", ca.display());
    assert!(said.contains(&tried) && said.contains("UnknownIssuer"), "{said}");
    fs::copy(fleet.machine.state().join("bus-ca.pem"), &ca).unwrap();
    let said = ping(5, &url.replace("tls://", "nats://"));
    assert!(said.contains("is encrypted: tls://"), "{said}");
    assert!(ping(0, &url).contains("n1"));
}

#[test]
fn a_fleet_whose_bus_listened_in_clear_goes_on_so_until_somebody_says_otherwise() {
    let fleet = Fleet::new();
    let file = fleet.machine.state().join("fleet.json");
    let listen = free_address();
    let text = |more: &str| {
        format!(r#"{{"v": 1, "nodes": ["n1"], "controllers": ["c1"], "listen": "{listen}"{more}}}"#)
    };
    fs::write(&file, text("")).unwrap();
    let said = fleet.machine.exits(0, &["up", "--listen", &listen, "-d"]);
    assert!(said.contains("is not encrypted") && said.contains("smgr help bus"), "{said}");
    let web = Machine::new();
    enrol(&fleet, &web, "web-1", &[]);
    web.exits(0, &["up", "-d"]);
    hears_of(&fleet, "web-1");
    assert_eq!((url(&fleet.machine), url(&web)), (format!("nats://{listen}"), url(&fleet.machine)));
    assert!(!fleet.machine.state().join("bus-ca.pem").exists());
    let (request, _) = tell(&web, 0, &["node", "request"], "");
    let (_, err) = tell(&fleet.machine, 2, &["node", "admit", "--url", "tls://bus:4222"], &request);
    assert!(err.contains("is not encrypted"), "{err}");

    // As `smgr help bus` says; in the other order nothing is done.
    let mut known: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    known["tls"] = true.into();
    fs::write(&file, known.to_string()).unwrap();
    let (_, err) = tell(&fleet.machine, 6, &["node", "admit"], &request);
    assert!(err.contains("smgr down"), "{err}");
    fleet.machine.exits(0, &["ping", "--via", "bus"]);
    fleet.machine.exits(0, &["down"]);
    let said = fleet.machine.exits(0, &["up", "-d"]);
    assert!(!said.contains("not encrypted"), "{said}");
    web.exits(0, &["down"]);
    enrol(&fleet, &web, "web-1", &[]);
    web.exits(0, &["up", "-d"]);
    hears_of(&fleet, "web-1");
    assert_eq!(url(&web), format!("tls://{listen}"));
}

#[test]
fn a_script_without_a_client_library_publishes_a_wish_to_an_encrypted_bus() {
    let fleet = Fleet::new();
    fleet.service("n1", "web", "exec = [\"sleep\", \"1000\"]\n");
    open(&fleet);
    let signed = fleet.machine.smgr(&["sign", "--for", "10m", "restart", "web", "--node", "n1"]);
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let wish = fleet.machine.folder().join("wish");
    fs::write(&wish, signed.stdout).unwrap();
    let before = fleet.machine.ready("web");
    let operator = smgr::head::folder::StateFolder::new(fleet.machine.state());
    let operator = super::hostile::a_persons_access(&operator).inbox.0.to_string();
    let publish = |code: i32, ca: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci/publish.py");
        let ran = Command::new("python3")
            .arg("-S")
            .arg(script)
            .args(["--as", &operator, "--server", &url(&fleet.machine), "--timeout", "30", "--ca"])
            .arg(ca)
            .arg("--nkey")
            .arg(fleet.machine.state().join("keys/operator.nk"))
            .arg(&wish)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
        assert_eq!(ran.status.code(), Some(code), "{said}");
        said
    };
    let said = publish(5, &certificate("stranger.pem"));
    assert!(said.contains("CERTIFICATE_VERIFY_FAILED"), "{said}");
    assert_eq!(publish(0, &fleet.machine.state().join("bus-ca.pem")), "n1  done\n");
    fleet.machine.ready_but("web", Some(before));
}

#[test]
fn a_server_of_ones_own_is_trusted_by_the_authority_that_was_put_into_the_state_folder() {
    let (file, key) = (certificate("server.pem"), certificate("server.key"));
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {file:?}, key_file: {key:?}, handshake_first: true }}"
    ));
    let url = server.url().replace("nats://", "tls://");
    let machine = Machine::new();
    fs::copy(certificate("authority.pem"), machine.state().join("bus-ca.pem")).unwrap();
    machine.exits(0, &["up", "-d", "--bus", &url]);
    eventually("it is on the bus", || {
        let bus = machine.json(&["status"])["nodes"][0]["bus"].clone();
        (bus["state"] == "connected").then_some(())
    });
    machine.exits(0, &["ping", "--via", "bus"]);
}
