//! How long a signed wish takes over the bus until its outcome is durable, answered and verified; one in flight.
//!
//! The floor is what no such path can do without, measured in turn with it: a request over the same server, two
//! fdatasyncs on the same disk, three signatures, two verifications, and four round trips over a socket.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use smgr::agent::setup::NodeSetup;
use smgr::bus::{BusOptions, Connection, Credentials};
use smgr::domain::event::Outcome;
use smgr::domain::id::{FleetId, IntentId, NodeId, ServiceId};
use smgr::domain::intent::Action;
use smgr::domain::policy::Kind;
use smgr::domain::time::UnixMicros;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::ipc::socket;
use smgr::wire::codec;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use smgr::wire::key::{Keyring, Signer};
use smgr::wire::payload::{Answer, Audience, Intent, Mode, PAYLOAD_VERSION, Reply};
use smgr::wire::subject::{Callee, InboxPrefix, Subject};

use crate::{Figure, median_us};

const WARM_UP: usize = 50;
const COMMANDS: usize = 500;
const WITHIN: Duration = Duration::from_secs(10);
/// SIGUSR1, which the service ignores.
const SIGNAL: i32 = 10;

/// Somebody with the operator's key, on the bus.
struct Operator {
    signer: Signer,
    ring: Keyring,
    fleet: FleetId,
    node: NodeId,
    service: ServiceId,
    connection: Connection,
}

impl Operator {
    fn intent(&self) -> anyhow::Result<(IntentId, Vec<u8>)> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).ok().context("no randomness")?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let iat = UnixMicros(u64::try_from(since.as_micros())?);
        let intent = Intent {
            v: PAYLOAD_VERSION,
            id: IntentId(id),
            iss: self.signer.kid(),
            iat,
            exp: iat.plus_ms(60_000),
            fleet: self.fleet.clone(),
            mode: Mode::Once,
            action: Action::Signal { service: self.service.clone(), signal: SIGNAL },
            audience: Audience::Nodes(vec![self.node.clone()]),
            note: String::new(),
        };
        Ok((IntentId(id), envelope::seal(Kind::Intent, &codec::encode(&intent), &self.signer)))
    }

    /// Sends one wish and waits for its verified outcome.
    async fn command(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let (id, bytes) = self.intent()?;
        let to = Callee::node(self.node.clone())?;
        let subject = Subject::Call { fleet: self.fleet.clone(), to };
        let mut answers = self.connection.request(&subject, bytes, WITHIN).await?;
        loop {
            let bytes = answers.next().await?.context("no answer in time")?;
            let opened = envelope::read(&bytes, ENVELOPE_BYTES_MAX)?.open(&self.ring)?;
            let answer: Answer = codec::decode(opened.payload)?;
            ensure!(answer.cause == id, "an answer to another wish");
            match answer.reply {
                Reply::Outcome { outcome: Outcome::Done { .. }, .. } => return Ok(began.elapsed()),
                Reply::Accepted { .. } => {}
                other => bail!("the wish came to {other:?}"),
            }
        }
    }
}

/// The parts of the floor, ready to be measured.
struct Floor {
    client: async_nats::Client,
    file: File,
    socket: OwnedFd,
    envelope: Vec<u8>,
    payload: Vec<u8>,
}

impl Floor {
    /// Does once what every command has to do.
    async fn once(&mut self, operator: &Operator) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let request =
            self.client.request(floor_subject(&operator.fleet), self.envelope.clone().into());
        request.await.context("nobody echoes")?;
        for _ in 0..2 {
            self.file.write_all(&self.envelope)?;
            self.file.sync_data()?;
        }
        for _ in 0..3 {
            let sealed = envelope::seal(Kind::Intent, &self.payload, &operator.signer);
            std::hint::black_box(sealed);
        }
        for _ in 0..2 {
            let sealed = envelope::read(&self.envelope, ENVELOPE_BYTES_MAX)?;
            std::hint::black_box(sealed.open(&operator.ring)?);
        }
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..4 {
            rustix::io::write(&self.socket, &self.envelope)?;
            rustix::io::read(&self.socket, &mut buffer)?;
        }
        Ok(began.elapsed())
    }
}

/// Echoes packets until the other end is gone.
fn echo_socket(socket: &OwnedFd) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = rustix::io::read(socket, &mut buffer) {
        if rustix::io::write(socket, &buffer[..count]).is_err() {
            return;
        }
    }
}

/// Within what the users of the bus may say and hear, and no subject of the node.
fn floor_subject(fleet: &FleetId) -> String {
    format!("smgr.v1.{fleet}.floor")
}

async fn nats(url: &str, seed: &Path, inbox: &InboxPrefix) -> anyhow::Result<async_nats::Client> {
    let seed = std::fs::read_to_string(seed)?;
    let options = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned());
    Ok(options.custom_inbox_prefix(inbox.to_string()).connect(url).await?)
}

/// Echoes requests on the bus, from a thread of its own.
fn echo_bus(
    url: String,
    seed: PathBuf,
    fleet: FleetId,
    ready: std::sync::mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = nats(&url, &seed, &InboxPrefix("floor".parse()?)).await?;
        let mut requests = client.subscribe(floor_subject(&fleet)).await?;
        client.flush().await?;
        ready.send(()).ok();
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                client.publish(reply, request.payload).await?;
            }
        }
        Ok(())
    })
}

/// Measures wishes at a node that is up with a bus.
pub(crate) fn command(state: &Path, service: &str) -> anyhow::Result<Vec<Figure>> {
    let folder = StateFolder::new(state);
    let setup = NodeSetup::read(&folder)?;
    let bus = setup.bus.context("the node has no bus")?;
    let (trust, ring) = load_trust(&folder)?;
    let signer = load_key(&KeyName::Operator.path(&folder))?;
    let (_, holder) = ring.get(signer.kid()).context("the operator's key is not trusted")?;
    let inbox = InboxPrefix(holder.name.clone());
    let mut options = BusOptions::new(bus.urls.clone(), inbox.clone(), "bench");
    let seed = bus.operator_nkey.context("the operator has no key for the bus")?;
    options.credentials = Credentials::read(&seed)?;
    // Only the node may answer at the inboxes of others.
    let echo_seed = bus.nkey.context("the node has no key for the bus")?;
    let url = bus.urls.first().context("the bus has no url")?.clone();

    let (here, there) = socket::pair()?;
    for end in [&here, &there] {
        rustix::io::ioctl_fionbio(end, false)?;
    }
    std::thread::spawn(move || echo_socket(&there));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (echo_url, fleet) = (url.clone(), trust.fleet.clone());
    std::thread::spawn(move || echo_bus(echo_url, echo_seed, fleet, ready));
    is_ready.recv_timeout(WITHIN).context("the echo on the bus did not begin")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let operator = Operator {
            signer,
            ring,
            fleet: trust.fleet,
            node: setup.node,
            service: service.parse()?,
            connection: Connection::dial(&options).await?,
        };
        let (_, envelope) = operator.intent()?;
        let payload = envelope::read(&envelope, ENVELOPE_BYTES_MAX)?.unverified_payload().to_vec();
        let file = File::create(state.join("floor"))?;
        let client = nats(&url, &seed, &inbox).await?;
        let mut floor = Floor { client, file, socket: here, envelope, payload };
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for n in 0..WARM_UP + COMMANDS {
            let (command, least) = (operator.command().await?, floor.once(&operator).await?);
            if n >= WARM_UP {
                ours.push(command);
                floors.push(least);
            }
        }
        Ok(vec![Figure {
            name: "command",
            unit: "us",
            smgr: median_us(&mut ours),
            other: "floor",
            measured: median_us(&mut floors),
        }])
    })
}
