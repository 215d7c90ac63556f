//! `smgr emulate`: makes the keys of a fleet and runs its nodes in this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::setup::{BusSetup, NodeSetup, SpecSources};
use crate::cli::args::Emulate;
use crate::cli::context::{Context, short, user_name};
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::Out;
use crate::cli::time;
use crate::cli::wish::from_keys;
use crate::controller::setup::ControllerSetup;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::TrustChanged;
use crate::domain::id::{Digest, FleetId, NodeId};
use crate::emulate::{self, Bus, Fleet, Load};
use crate::head::clock;
use crate::head::enrol::{Enrolment, Machine, Member, enrol};
use crate::head::folder::StateFolder;
use crate::head::keyfile::{KeyName, load_key, load_named_trust};
use crate::wire::key::{Signer, digest_of};

/// What the keys of an emulated node are derived from, beside its name.
const NODE_KEY: &[u8] = b"smgr-emulated-node-v1\0";
const LOCAL_KEY: &[u8] = b"smgr-emulated-local-v1\0";

/// Nodes with their keys.
type Nodes = Vec<(NodeId, Signer)>;

/// Runs the nodes until Ctrl-C.
///
/// # Errors
/// When the folder, the keys or the bus cannot be used.
pub(in crate::cli) fn run(
    context: &Context,
    args: &Emulate,
    out: Out,
) -> Result<ExitCode, CliError> {
    let Some(url) = context.global.bus.clone() else {
        return Err(CliError::new(Code::BUS_OFF, "emulated nodes need a bus")
            .hint("start one and name it: nats-server -js, then --bus nats://127.0.0.1:4222"));
    };
    let bus = Bus { urls: vec![url], ca: context.told_bus_ca() };
    let (fleet, nodes) = prepare(context, args, &bus)?;
    let count = nodes.len();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::caused(Code::IO, "failed to start", &error))?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::watch()?;
        let up = || out.line(&format!("{count} nodes listen; Ctrl-C ends them"));
        let end = async {
            interrupts.next().await;
        };
        let ended = Box::pin(emulate::run(&fleet, nodes, &bus, up, end)).await;
        ended.map_err(|error| CliError::from_error(Code::BUS_UNREACHABLE, &error))
    })?;
    Ok(ExitCode::Done)
}

/// Makes what the fleet needs: keys, trust, and the set-ups of its controllers and of whoever commands it.
fn prepare(context: &Context, args: &Emulate, bus: &Bus) -> Result<(Arc<Fleet>, Nodes), CliError> {
    let folder = &context.folder;
    let unwritten = |error| {
        CliError::caused(Code::IO, "failed to write the set-up", &error).at(short(folder.root()))
    };
    let fleet: FleetId = "emulated".parse().expect("a constant that is a name");
    let name = |letter: char, number: u32| -> NodeId {
        format!("{letter}{number}").parse().expect("a letter and a number are a name")
    };
    let member = |name: NodeId, folder: StateFolder| Member { name, folder };
    let below = |name: &NodeId| StateFolder::new(folder.root().join("fleet").join(name.as_str()));
    let controllers = (1..=u32::from(args.controllers)).map(|number| name('c', number));
    let mut enrolment = Enrolment {
        fleet: fleet.clone(),
        operator: user_name(),
        nodes: vec![member(name('n', 1), folder.clone())],
        machines: BTreeMap::new(),
        labels: BTreeMap::new(),
        controllers: controllers.map(|name| member(name.clone(), below(&name))).collect(),
        jobs: BTreeMap::new(),
        now: time::now(),
    };
    let first = KeyName::Node.path(folder);
    if !first.exists() {
        enrol(&enrolment).map_err(|error| from_keys(&error))?;
    }
    let first = load_key(&first).map_err(|error| from_keys(&error.into()))?;
    let others = (2..=args.nodes).map(|number| name('n', number));
    let nodes: Vec<_> =
        others.map(|node| (node.clone(), derived(NODE_KEY, &first, &node))).collect();
    enrolment.machines = nodes
        .iter()
        .map(|(name, key)| {
            let local = Digest(derived(LOCAL_KEY, &first, name).public().to_bytes());
            // All are the same user of the bus.
            let machine =
                Machine { node: Digest(key.public().to_bytes()), local, bus: String::new() };
            (name.clone(), machine)
        })
        .collect();
    enrol(&enrolment).map_err(|error| from_keys(&error))?;
    for controller in &enrolment.controllers {
        let (urls, ca) = (bus.urls.clone(), bus.ca.clone());
        // What was set beside the bus stays, such as the length of the lease.
        let known = ControllerSetup::read(&controller.folder).unwrap_or_else(|_| {
            ControllerSetup::new(fleet.clone(), controller.name.clone(), Vec::new())
        });
        let setup = ControllerSetup { urls, ca, ..known };
        setup.write(&controller.folder).map_err(unwritten)?;
    }
    let mut setup =
        NodeSetup::new(fleet.clone(), name('n', 1), SpecSources::default(), context.service_logs());
    setup.bus = Some(BusSetup::elsewhere(bus.urls.clone(), None, bus.ca.clone()));
    setup.write(folder).map_err(unwritten)?;
    let (trust, ring, digest) = load_named_trust(folder).map_err(|error| from_keys(&error))?;
    let boot = clock::boot_id()
        .map_err(|error| CliError::caused(Code::IO, "failed to read the boot id", &error))?;
    let common = Fleet {
        fleet,
        boot,
        ring: Arc::new(ring),
        revoked: trust.revoked,
        roster: Arc::new(trust.nodes.into()),
        trust: TrustChanged { version: trust.version, digest },
        specs: emulate::Specs::default(),
        load: Load {
            backlog: args.backlog,
            every: args
                .rate
                .map(|rate| Duration::from_secs_f64(f64::from(args.nodes) / f64::from(rate))),
        },
    };
    let nodes = std::iter::once((name('n', 1), first)).chain(nodes).collect();
    Ok((Arc::new(common), nodes))
}

/// Returns a key of a node, which nobody can derive who has not the key of the first.
fn derived(domain: &[u8], first: &Signer, node: &NodeId) -> Signer {
    let text = [domain, node.as_str().as_bytes()].concat();
    Signer::from_seed(&digest_of(&first.sign(&text)).0)
}
