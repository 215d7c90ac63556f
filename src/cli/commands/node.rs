//! `smgr node`: nodes on other machines, taken into the fleet by two messages that hold no secret.
//!
//! The keys are made where they are used and stay there. A request has their public halves; the root key signs them into
//! the trust of the fleet; the welcome brings that trust back. Whoever carries the two messages, an administrator's ssh
//! as a rule, vouches for them: nothing else does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::service::{Place, outcome};
use super::up::fleet::service_of;
use super::up::{divide, members};
use crate::agent::setup::{BUS_SERVICE, BusSetup, NodeSetup};
use crate::bus::{BusOptions, host_of, vouches};
use crate::cli::args::{NodeCommand, Waiting};
use crate::cli::client::Whom;
use crate::cli::context::{Context, host_name, short};
use crate::cli::error::CliError;
use crate::cli::fleet::Fleet;
use crate::cli::interrupt::Interrupted;
use crate::cli::out::Out;
use crate::cli::session::alive;
use crate::cli::wish::from_keys;
use crate::cli::{nats, specs};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Digest, FleetId, NodeId};
use crate::domain::intent::Action;
use crate::domain::policy::{Grant, KeyClass, Names};
use crate::domain::signal::Signal;
use crate::domain::text::printable;
use crate::head::enrol::Machine;
use crate::head::folder::write_whole;
use crate::head::keyfile::{KeyName, hex_line, key_of, load_key, load_trust, read_root};
use crate::head::trust::read_trust;
use crate::wire::key::PublicKey;
use crate::wire::payload::TrustedKey;
use crate::wire::subject::InboxPrefix;

/// Larger than a trust envelope in base 64; more is not read.
const MESSAGE_BYTES_MAX: u64 = 2 * 1024 * 1024;

const REQUEST: &str = "smgr.node.request.v1";
const WELCOME: &str = "smgr.node.welcome.v1";

/// What a new machine asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    schema: String,
    name: NodeId,
    keys: Machine,
}

/// What it is given.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Welcome {
    schema: String,
    fleet: FleetId,
    node: NodeId,
    urls: Vec<String>,
    /// Who vouches for an encrypted bus, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    /// The public root key, in hex.
    root: String,
    /// The trust envelope, in base 64.
    trust: String,
}

/// Carries out one of the commands.
pub(super) async fn node(
    context: &Context,
    command: NodeCommand,
    out: Out,
) -> Result<ExitCode, CliError> {
    match command {
        NodeCommand::Request { name } => request(context, name, out),
        NodeCommand::Admit { request, labels, url } => {
            admit(context, &request, labels, url, out).await
        }
        NodeCommand::Join { welcome } => join(context, &welcome, out),
        NodeCommand::Remove { node } => remove(context, &node, out).await,
    }
}

fn request(context: &Context, name: Option<NodeId>, out: Out) -> Result<ExitCode, CliError> {
    let setup = context.setup()?;
    // One that joined may ask again: for other labels, or with a lost welcome.
    let is_member = |setup: &NodeSetup| setup.bus.as_ref().is_some_and(|bus| !bus.own_server);
    let asks_again = |setup: &NodeSetup| name.as_ref().is_none_or(|name| *name == setup.node);
    if let Some(setup) = setup.as_ref().filter(|setup| !(is_member(setup) && asks_again(setup))) {
        return Err(taken(setup)
            .at(short(context.folder.root()))
            .hint("a node joins with a folder of its own: smgr node request --state DIR"));
    }
    let name = setup.map(|setup| setup.node).or(name).unwrap_or_else(host_name);
    context.folder.make().map_err(|error| unwritten(context.folder.root(), &error))?;
    let public = |key| {
        let signer = key_of(&context.folder, key).map_err(|error| from_keys(&error))?;
        Ok(Digest(signer.public().to_bytes()))
    };
    let keys = Machine {
        node: public(KeyName::Node)?,
        local: public(KeyName::Local)?,
        bus: nats::public_nkey(&context.folder.keys().join("node.nk"))?,
    };
    out.note(&format!("key of {name}: {}", keys.node));
    out.data(&line(&Request { schema: REQUEST.to_owned(), name, keys }));
    Ok(ExitCode::Done)
}

async fn admit(
    context: &Context,
    path: &Path,
    labels: Vec<(String, String)>,
    url: Option<String>,
    out: Out,
) -> Result<ExitCode, CliError> {
    let asked: Request = message(path, REQUEST, "a request of `smgr node request`")?;
    let Request { name, keys, .. } = asked;
    let is_key = |key: &Digest| PublicKey::from_bytes(&key.0).is_ok();
    let is_whole = keys.node != keys.local && nats::is_public_nkey(&keys.bus);
    if !is_key(&keys.node) || !is_key(&keys.local) || !is_whole {
        let what = format!("the request of {name} does not hold the keys of a node");
        return Err(CliError::new(Code::BAD_SHAPE, what));
    }
    let (before, _lock) = own_fleet(context)?;
    let mut fleet = before.clone();
    let urls = vec![url_for_others(&mut fleet, url)?];
    let (trust, ring) = load_trust(&context.folder).map_err(|error| from_keys(&error))?;
    let mut holders = ring.iter().map(|(_, holder)| holder);
    let is_taken =
        holders.any(|it| it.name.as_str() == name.as_str() && it.class != KeyClass::Node);
    if fleet.nodes.contains(&name) || fleet.controllers.contains(&name) || is_taken {
        let what = format!("{name} is the name of somebody in this fleet");
        return Err(CliError::new(Code::MEMBERSHIP, what)
            .hint("give the new node another name: smgr node request --name NAME"));
    }
    if fleet.machines.get(&name).is_some_and(|known| *known != keys) {
        return Err(CliError::new(
            Code::MEMBERSHIP,
            format!("{name} was admitted with other keys"),
        )
        .hint("one that was lost or made anew is removed first")
        .next(format!("smgr node remove {name}")));
    }
    let is_own = |known: &TrustedKey| match known.class {
        KeyClass::Node => known.key == keys.node && known.name.as_str() == name.as_str(),
        KeyClass::Local => {
            let only = |grant: &Grant| grant.nodes == Names::Only(vec![name.clone()]);
            known.key == keys.local && known.grants.iter().all(only)
        }
        KeyClass::Root | KeyClass::Human | KeyClass::Ci | KeyClass::Controller => false,
    };
    let mut known = trust.keys.iter().filter(|it| [keys.node, keys.local].contains(&it.key));
    let users = members::users_of_the_bus(context, &fleet)?;
    let is_user = users.iter().any(|(user, key)| *key == keys.bus && user != name.as_str());
    if is_user || known.any(|known| !is_own(known)) {
        return Err(CliError::new(
            Code::MEMBERSHIP,
            format!("the keys of {name} are another node's"),
        ));
    }
    let fingerprint = keys.node;
    fleet.machines.insert(name.clone(), keys);
    if !labels.is_empty() {
        fleet.labels.insert(name.clone(), labels.into_iter().collect::<BTreeMap<_, _>>());
    }
    if let Some(interrupted) = put_in_force(context, (&before, &fleet), out).await? {
        return Ok(interrupted.exit());
    }
    let trust = std::fs::read(context.folder.trust())
        .map_err(|error| unread(&context.folder.trust(), &error))?;
    let root = read_root(&context.folder).map_err(|error| from_keys(&error))?;
    let root = root.map(|root| Digest(root.to_bytes()).to_string()).unwrap_or_default();
    let id = context.setup()?.map(|setup| setup.fleet);
    let ca = context.folder.bus_ca();
    let ca = fleet.tls.then(|| std::fs::read_to_string(&ca).map_err(|error| unread(&ca, &error)));
    let welcome = Welcome {
        schema: WELCOME.to_owned(),
        fleet: id.ok_or_else(|| no_fleet(context))?,
        node: name.clone(),
        urls,
        ca: ca.transpose()?,
        root,
        trust: BASE64_STANDARD.encode(trust),
    };
    out.note(&format!("admitted {name} with the key {fingerprint}"));
    out.data(&line(&welcome));
    Ok(ExitCode::Done)
}

fn join(context: &Context, path: &Path, out: Out) -> Result<ExitCode, CliError> {
    let welcome: Welcome = message(path, WELCOME, "what `smgr node admit` printed")?;
    let folder = &context.folder;
    if alive(context).is_some() {
        return Err(CliError::new(Code::ALREADY_UP, "smgr runs on this state folder")
            .at(short(folder.root()))
            .next("smgr down"));
    }
    let other =
        context.setup()?.filter(|it| (&it.fleet, &it.node) != (&welcome.fleet, &welcome.node));
    if let Some(setup) = other {
        return Err(taken(&setup).hint("a node joins with a folder of its own: --state DIR"));
    }
    let bad = |what: &str| CliError::new(Code::BAD_SHAPE, format!("the welcome {what}"));
    let root: Digest = welcome.root.parse().map_err(|_| bad("names no root key"))?;
    let root = PublicKey::from_bytes(&root.0).map_err(|_| bad("names no root key"))?;
    let pinned = read_root(folder).map_err(|error| from_keys(&error))?;
    if pinned.is_some_and(|pinned| pinned != root) {
        return Err(CliError::new(Code::BAD_SIGNATURE, "this node is pinned to another root key")
            .at(short(&folder.root_pin())));
    }
    let trust = BASE64_STANDARD.decode(&welcome.trust).map_err(|_| bad("holds no trust"))?;
    let (document, ring, _) = read_trust(&trust, root).map_err(|error| {
        CliError::caused(Code::BAD_SIGNATURE, "the trust in the welcome cannot be followed", &error)
    })?;
    let own = load_key(&KeyName::Node.path(folder)).map_err(|error| {
        CliError::caused(Code::UNKNOWN_SIGNER, "this state folder has no key of a node", &error)
            .next("smgr node request")
    })?;
    let is_ours = ring.get(own.kid()).is_some_and(|(_, holder)| {
        holder.class == KeyClass::Node && holder.name.as_str() == welcome.node.as_str()
    });
    if document.fleet != welcome.fleet || !is_ours {
        let what = format!("the welcome is for another machine than this {}", welcome.node);
        return Err(CliError::new(Code::WRONG_AUDIENCE, what).next("smgr node request"));
    }
    let present = load_trust(folder).ok().map(|(present, _)| present.version);
    if let Some(present) = present.filter(|present| *present > document.version) {
        let what = format!(
            "the welcome has version {} of the trust, and this node follows version {present}",
            document.version
        );
        return Err(CliError::new(Code::TRUST_UNUSABLE, what).hint("have it admitted again"));
    }
    let urls = welcome.urls.iter().cloned().map(checked).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() {
        return Err(bad("names no bus"));
    }
    let ca = welcome.ca.filter(|pem| vouches(pem));
    if ca.is_none() && urls.iter().any(|url| url.starts_with("tls://")) {
        return Err(bad("does not say who vouches for the bus"));
    }
    let pin = hex_line(root);
    let files = [(folder.root_pin(), pin.as_bytes()), (folder.trust(), trust.as_slice())];
    let vouching = ca.as_ref().map(|pem| (folder.bus_ca(), pem.as_bytes()));
    for (path, bytes) in files.into_iter().chain(vouching) {
        write_whole(&path, bytes, 0o644).map_err(|error| unwritten(&path, &error))?;
    }
    let sources = specs::sources(context, None);
    let mut setup = NodeSetup::new(
        welcome.fleet.clone(),
        welcome.node.clone(),
        sources,
        context.service_logs(),
    );
    let nkey = folder.keys().join("node.nk");
    let ca = ca.map(|_| folder.bus_ca());
    setup.bus = Some(BusSetup::elsewhere(urls.clone(), Some(nkey), ca));
    setup.write(folder).map_err(|error| unwritten(&folder.setup(), &error))?;
    divide(context)?;
    out.note(&format!(
        "{} belongs to the fleet {}, whose root key is {}; the bus is at {}",
        welcome.node,
        welcome.fleet,
        welcome.root,
        urls.join(", ")
    ));
    out.note("start it: smgr up -d, or systemctl start smgr");
    Ok(ExitCode::Done)
}

async fn remove(context: &Context, node: &NodeId, out: Out) -> Result<ExitCode, CliError> {
    let (before, _lock) = own_fleet(context)?;
    let mut fleet = before.clone();
    if fleet.machines.remove(node).is_none() {
        let names: Vec<_> = fleet.machines.keys().map(NodeId::as_str).collect();
        let what = format!("{node} is no node on another machine");
        return Err(CliError::new(Code::NO_SUCH_NODE, what).hint(format!(
            "there are: {}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        )));
    }
    fleet.labels.remove(node);
    if let Some(interrupted) = put_in_force(context, (&before, &fleet), out).await? {
        return Ok(interrupted.exit());
    }
    out.note(&format!(
        "{node} is trusted no more and the bus refuses it; its services go on: smgr down on that machine ends them"
    ));
    Ok(ExitCode::Done)
}

/// Signs who belongs to the fleet from here on, and lets the bus and the controllers know. The nodes hear of it from the
/// controllers.
async fn put_in_force(
    context: &Context,
    (before, fleet): (&Fleet, &Fleet),
    out: Out,
) -> Result<Option<Interrupted>, CliError> {
    let bus = context.setup()?.and_then(|setup| setup.bus).filter(|bus| bus.own_server);
    let is_other = |bus: &BusSetup| bus.urls.iter().any(|it| it.starts_with("tls://")) != fleet.tls;
    if alive(context).is_some() && bus.as_ref().is_some_and(is_other) {
        let what =
            "whether the bus is encrypted was changed, which takes effect when all of it starts";
        return Err(CliError::new(Code::ALREADY_UP, what).next("smgr down, smgr up -d"));
    }
    // First who belongs to it, then what follows: cut short, the next `admit` or `up` goes on from there.
    fleet.write(context)?;
    if let Err(error) = members::enrol_all(context, fleet) {
        before.write(context)?;
        return Err(error);
    }
    divide(context)?;
    if alive(context).is_none() {
        return Ok(None);
    }
    let hup = Action::Signal { service: BUS_SERVICE.clone(), signal: Signal::HUP.number() };
    let restarts = fleet.controllers.iter().map(|it| Action::Restart { service: service_of(it) });
    for action in std::iter::once(hup).chain(restarts) {
        let heard =
            outcome(context, &Whom::default(), action, Waiting::default(), (Place::Before, out))
                .await?;
        match heard {
            Err(interrupted) => return Ok(Some(interrupted)),
            Ok(verdicts) if verdicts.exit(false) != ExitCode::Done => {
                out.note(
                    "signed, and not in force everywhere: smgr down and smgr up bring it about",
                );
            }
            Ok(_) => {}
        }
    }
    Ok(None)
}

/// Returns the fleet of this machine, which nobody else changes as long as the file is held.
fn own_fleet(context: &Context) -> Result<(Fleet, File), CliError> {
    Fleet::read(context)?.ok_or_else(|| no_fleet(context))?;
    let lock = Fleet::lock(context)?;
    let fleet = Fleet::read(context)?.ok_or_else(|| no_fleet(context))?;
    if !KeyName::Root.path(&context.folder).exists() {
        let what = "the root key, which says who belongs to the fleet, is not on this machine";
        return Err(CliError::new(Code::NOT_GRANTED, what).at(short(&context.folder.keys())));
    }
    Ok((fleet, lock))
}

/// Takes the address of a bus as it is written, if it is one.
fn checked(url: String) -> Result<String, CliError> {
    let inbox = InboxPrefix("node".parse().expect("a constant that is a name"));
    let options = BusOptions::new(vec![url.clone()], inbox, "smgr");
    options.encrypted().map(|_| url.clone()).map_err(|_| {
        let what = format!("`{}` is not the address of a bus", printable(&url));
        CliError::new(Code::USAGE, what).hint("write nats://HOST:4222 or tls://HOST:4222")
    })
}

/// Says that a state folder belongs to a node already.
fn taken(setup: &NodeSetup) -> CliError {
    let what = format!("this state folder is that of {} in the fleet {}", setup.node, setup.fleet);
    CliError::new(Code::MEMBERSHIP, what)
}

fn no_fleet(context: &Context) -> CliError {
    CliError::new(Code::NO_SUCH_NODE, "there is no fleet on this machine")
        .at(short(context.folder.root()))
        .hint("it begins with one node and a controller: smgr up --nodes 1 --listen ADDRESS:4222")
}

/// Returns how others reach the bus: as they were told, by a name that its certificate has from here on, or where it listens.
fn url_for_others(fleet: &mut Fleet, told: Option<String>) -> Result<String, CliError> {
    let hint = format!("--url {}", nats::url(fleet.tls, "HOST:4222"));
    if let Some(url) = told {
        let url = checked(url)?;
        if url.starts_with("tls://") != fleet.tls {
            let what = if fleet.tls { "is encrypted" } else { "is not encrypted" };
            let error = CliError::new(Code::USAGE, format!("the bus of this fleet {what}"));
            return Err(error.hint(hint));
        }
        fleet.names.extend(host_of(&url).filter(|_| fleet.tls));
        return Ok(url);
    }
    match fleet.listen {
        Some(listen) if !listen.ip().is_unspecified() => Ok(nats::url(fleet.tls, listen)),
        Some(_) => {
            Err(CliError::new(Code::USAGE, "the bus listens on all addresses of this machine")
                .hint(format!("say how the new node reaches it: {hint}")))
        }
        None => Err(CliError::new(
            Code::MEMBERSHIP,
            "the bus of this fleet listens on the loopback alone",
        )
        .hint("smgr down, then: smgr up --listen ADDRESS:4222")),
    }
}

fn message<T: for<'de> Deserialize<'de>>(
    path: &Path,
    schema: &str,
    what: &str,
) -> Result<T, CliError> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().take(MESSAGE_BYTES_MAX).read_to_string(&mut text),
        false => {
            File::open(path).and_then(|file| file.take(MESSAGE_BYTES_MAX).read_to_string(&mut text))
        }
    };
    read.map_err(|error| unread(path, &error))?;
    let shape = |why: &str| CliError::new(Code::BAD_SHAPE, format!("this is not {what}: {why}"));
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|why| match text.trim() {
            "" => shape("nothing came"),
            _ => shape(&why.to_string()),
        })?;
    if value["schema"] != schema {
        return Err(shape(&format!("its schema is not {schema}")));
    }
    serde_json::from_value(value).map_err(|why| shape(&why.to_string()))
}

fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("a plain value becomes JSON") + "\n"
}

fn unread(path: &Path, error: &io::Error) -> CliError {
    CliError::caused(Code::FILE_UNREADABLE, "failed to read the message", error).at(short(path))
}

fn unwritten(path: &Path, error: &io::Error) -> CliError {
    CliError::caused(Code::IO, "failed to write", error).at(short(path))
}
