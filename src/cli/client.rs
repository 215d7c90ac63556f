//! Reaches agents: this machine's by its socket, others' over the bus. Every answer is verified before it is shown.

mod bus;
mod local;
mod pending;

use std::collections::BTreeSet;
use std::sync::Once;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub use pending::{Missing, Pending};

use super::args::Via;
use super::context::{Context, not_up};
use super::error::CliError;
use super::out::Out;
use super::session::alive;
use super::wish::{Caller, Signed};
use crate::agent::setup::NodeSetup;
use crate::bus::{ObjectError, ObjectPlace, artifact_bucket_name, copy_object, put_artifact};
use crate::config::{TOLD_BYTES_MAX, Told};
use crate::domain::code::Code;
use crate::domain::id::{FleetId, NodeId, ServiceId};
use crate::domain::intent::Action;
use crate::domain::policy::{KeyClass, Kind};
use crate::head::keyfile::load_trust;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::Keyring;
use crate::wire::payload::{Answer, Ask, Audience, Reply};

/// How long a reading may take unless told otherwise.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// How much later than asked for the answer of somebody who waits may come.
const ANSWER_AFTER_WAIT: Duration = Duration::from_secs(3);

/// How long an outcome is waited for unless told otherwise.
const OUTCOME_WITHIN: Duration = Duration::from_secs(120);

/// How long the one that leads may take to answer unless told otherwise: a lease that was lost is taken anew meanwhile.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// The silence after which the same wish is sent again: who leads now may not have been listening.
const REQUEST_AGAIN: Duration = Duration::from_secs(2);

/// A command may connect several times; that the fleet is away is said once.
static SAID: Once = Once::new();

/// A way to one or more agents.
#[derive(Debug)]
pub struct Client {
    caller: Caller,
    route: Route,
    /// The nodes that were named; none is everybody for a question and this machine for a wish.
    named: Vec<NodeId>,
    own: Option<NodeId>,
    timeout: Option<Duration>,
    /// Whether the bus is the one that this machine runs itself.
    bus_is_here: bool,
    /// The controller that leads, once it is known.
    leader: Option<NodeId>,
}

#[derive(Debug)]
enum Route {
    Local(local::Road),
    Bus(bus::Road),
}

/// Whom a command is for, before it is known how they are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whom {
    nodes: BTreeSet<NodeId>,
    /// Where nobody is named: the whole fleet, if this machine is part of one.
    everybody: bool,
}

impl Whom {
    /// Takes the nodes of `--node` and of the selectors; none means this machine.
    pub fn new(context: &Context, named: impl IntoIterator<Item = NodeId>) -> Self {
        let nodes = context.global.nodes.iter().cloned().chain(named).collect();
        Self { nodes, everybody: false }
    }

    /// The same; but none means every node of the fleet that this machine is part of.
    pub fn or_everybody(context: &Context, named: impl IntoIterator<Item = NodeId>) -> Self {
        Self { everybody: true, ..Self::new(context, named) }
    }

    /// Returns the node that was named, if it is one.
    pub fn only(&self) -> Option<&NodeId> {
        self.nodes.first().filter(|_| self.nodes.len() == 1)
    }

    /// Returns the nodes that were named.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter()
    }

    /// Says whether nobody but `own` is meant.
    pub fn is_only(&self, own: &NodeId) -> bool {
        self.nodes.iter().all(|node| node == own)
    }
}

/// Returns who keeps a log, by the trust document of this machine: each node, and each controller.
fn members(context: &Context) -> Vec<(NodeId, KeyClass)> {
    let trust = context.folder.trust().exists().then(|| load_trust(&context.folder).ok()).flatten();
    let ring = trust.map(|(_, ring)| ring).unwrap_or_default();
    members_of(&ring)
}

fn members_of(ring: &Keyring) -> Vec<(NodeId, KeyClass)> {
    let keeps_log = |class| matches!(class, KeyClass::Node | KeyClass::Controller);
    let holders = ring.iter().map(|(_, holder)| holder).filter(|it| keeps_log(it.class));
    let mut members: Vec<(NodeId, KeyClass)> = holders
        .filter_map(|holder| Some((holder.name.as_str().parse().ok()?, holder.class)))
        .collect();
    members.sort_by(|(one, _), (other, _)| one.cmp(other));
    members
}

/// Says whether this machine is one of several nodes.
pub fn is_of_fleet(context: &Context) -> bool {
    members(context).iter().filter(|(_, class)| *class == KeyClass::Node).count() > 1
}

/// Refuses nodes that the trust document of this machine does not know.
///
/// # Errors
/// Which one there is not, and which there are.
pub fn check_nodes<'n>(
    context: &Context,
    named: impl IntoIterator<Item = &'n NodeId>,
) -> Result<(), CliError> {
    let mut named = named.into_iter().peekable();
    let members = if named.peek().is_some() { members(context) } else { Vec::new() };
    let is_unknown = |node: &&NodeId| !members.iter().any(|(known, _)| known == *node);
    let Some(unknown) = named.find(is_unknown).filter(|_| !members.is_empty()) else {
        return Ok(());
    };
    let names: Vec<&str> = members.iter().map(|(node, _)| node.as_str()).collect();
    Err(CliError::new(Code::NO_SUCH_NODE, format!("no such node: {unknown}"))
        .hint(format!("this machine knows {}", names.join(", ")))
        .next("smgr ping"))
}

impl Client {
    /// Connects: by the local socket when only this machine is meant and nothing else was asked for, else by the bus.
    ///
    /// # Errors
    /// When nobody can be reached, or there is no trust document to verify answers with.
    pub async fn connect(context: &Context, whom: &Whom) -> Result<Self, CliError> {
        check_nodes(context, &whom.nodes)?;
        let setup = context.setup()?;
        let own = setup.as_ref().map(|setup| setup.node.clone());
        let elsewhere = whom.nodes.iter().any(|node| Some(node) != own.as_ref());
        let by_bus = context.global.bus.is_some() || context.global.via == Via::Bus || elsewhere;
        if whom.everybody && whom.nodes.is_empty() && !by_bus && context.global.via == Via::Auto {
            match Self::connect_to_fleet(context, setup.as_ref()).await {
                Ok(Some(fleet)) => return Ok(fleet),
                Ok(None) => {}
                Err(error) => SAID.call_once(|| {
                    let out = Out { form: context.global.output };
                    out.note(&format!(
                        "the fleet cannot be asked ({error}): this is this machine alone"
                    ));
                }),
            }
        }
        let timeout = context.global.timeout;
        if by_bus && context.global.via != Via::Local {
            let caller = Caller::load(context, false)?;
            // Boxed: a future of 16 KiB would otherwise be part of every command.
            let road = Box::pin(bus::Road::connect(context, setup.as_ref(), &caller)).await?;
            let named = whom.nodes.iter().cloned().collect();
            let bus = setup.as_ref().and_then(|setup| setup.bus.as_ref());
            let bus_is_here = context.global.bus.is_none() && bus.is_some_and(|bus| bus.own_server);
            let (route, leader) = (Route::Bus(road), None);
            return Ok(Self { caller, route, named, own, timeout, bus_is_here, leader });
        }
        let own = own.ok_or_else(|| not_up(context))?;
        if let Some(other) = whom.nodes.iter().find(|node| **node != own) {
            return Err(CliError::new(
                Code::NO_SUCH_NODE,
                format!("the local socket reaches {own} and not {other}"),
            ));
        }
        let caller = Caller::load(context, true)?;
        let route = Route::Local(local::Road::connect(context, own.clone()).await?);
        Ok(Self {
            caller,
            route,
            named: vec![own.clone()],
            own: Some(own),
            timeout,
            bus_is_here: false,
            leader: None,
        })
    }

    /// Connects to the controllers; nothing when the trust document names none, or no bus is known.
    ///
    /// # Errors
    /// When the bus cannot be reached, or there is no trust document.
    pub async fn of_controllers(context: &Context) -> Result<Option<Self>, CliError> {
        let setup = context.setup()?;
        let caller = Caller::load(context, false)?;
        let bus = setup.as_ref().and_then(|setup| setup.bus.as_ref());
        let is_led = caller.ring.iter().any(|(_, it)| it.class == KeyClass::Controller);
        if !is_led || (bus.is_none() && context.global.bus.is_none()) {
            return Ok(None);
        }
        let bus_is_here = context.global.bus.is_none() && bus.is_some_and(|bus| bus.own_server);
        let road = Box::pin(bus::Road::connect(context, setup.as_ref(), &caller)).await?;
        Ok(Some(Self {
            caller,
            route: Route::Bus(road),
            named: Vec::new(),
            own: setup.as_ref().map(|setup| setup.node.clone()),
            timeout: context.global.timeout,
            bus_is_here,
            leader: None,
        }))
    }

    /// Signs a wish for the controllers.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn request(&self, action: Action, audience: Audience) -> Result<Signed, CliError> {
        self.caller.intent(action, audience)
    }

    /// Sends a wish to the controllers until the one that leads answers; nothing when none does in time.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn send_request(&mut self, wish: &Signed) -> Result<Option<Reply>, CliError> {
        let Route::Bus(road) = &self.route else { return Ok(None) };
        let deadline = Instant::now() + self.timeout.unwrap_or(LEADER_WITHIN);
        let principal = self.caller.principal()?;
        while Instant::now() < deadline {
            let within = REQUEST_AGAIN.min(deadline.saturating_duration_since(Instant::now()));
            let mut answers = road.request(wish, principal.clone(), within).await?;
            while let Ok(Some(bytes)) = answers.next().await {
                // Anybody on a bus can write into an inbox.
                let Ok(answer) = verified(&bytes, &self.caller.ring) else { continue };
                let holder = self.caller.ring.iter().map(|(_, holder)| holder).find(|holder| {
                    holder.class == KeyClass::Controller
                        && holder.name.as_str() == answer.node.as_str()
                });
                if answer.cause == wish.id && holder.is_some() {
                    self.prefer(answer.node);
                    return Ok(Some(answer.reply));
                }
            }
        }
        Ok(None)
    }

    /// Asks the controllers for something that comes in pieces, one after the other, until one gives all of it.
    ///
    /// # Errors
    /// When the question cannot be sent, or a controller refuses it.
    pub async fn ask_for_whole(&mut self, ask: &Ask) -> Result<Option<Vec<u8>>, CliError> {
        let mut refused = None;
        for controller in self.controllers() {
            let mut pending = self.ask_controller(&controller, ask.clone()).await?;
            let mut whole = Vec::new();
            while let Some(answer) = pending.next().await? {
                match answer.reply {
                    Reply::Piece { bytes } => whole.extend_from_slice(&bytes),
                    // One that follows may not have heard yet of what another leads.
                    Reply::Refused { code, why } => {
                        let code = code.parse().unwrap_or(Code::INTERNAL);
                        refused = Some(CliError::new(code, why));
                    }
                    _ => {}
                }
            }
            if pending.missing().is_empty() && !whole.is_empty() {
                return Ok(Some(whole));
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Asks a node for the effective configuration of a service.
    ///
    /// # Errors
    /// When the node cannot be reached, refuses, or does not tell all of it in time.
    pub async fn configuration(
        context: &Context,
        node: &NodeId,
        service: &ServiceId,
    ) -> Result<Told, CliError> {
        let mut client = Self::connect(context, &Whom::new(context, [node.clone()])).await?;
        let mut pending = client.ask(Ask::Config { service: service.clone() }).await?;
        let mut whole = Vec::new();
        while let Some(answer) = pending.next().await? {
            match answer.reply {
                Reply::Piece { bytes } if whole.len() + bytes.len() <= TOLD_BYTES_MAX => {
                    whole.extend_from_slice(&bytes);
                }
                Reply::Refused { code, why } => {
                    let code = code.parse().unwrap_or(Code::INTERNAL);
                    return Err(CliError::new(code, why).at(node.to_string()));
                }
                _ => break,
            }
        }
        if !pending.missing().is_empty() {
            let what = format!("no answer from {node}");
            return Err(CliError::new(Code::AGENT_UNREACHABLE, what));
        }
        serde_json::from_slice(&whole).map_err(|error| {
            CliError::caused(Code::INTERNAL, "the answer of a node does not read", &error)
        })
    }

    /// Connects to the bus of a fleet; nothing when this machine is all there is.
    async fn connect_to_fleet(
        context: &Context,
        setup: Option<&NodeSetup>,
    ) -> Result<Option<Self>, CliError> {
        let Some(bus) = setup.and_then(|setup| setup.bus.as_ref()) else { return Ok(None) };
        let caller = Caller::load(context, false)?;
        let nodes = caller.ring.iter().filter(|(_, holder)| holder.class == KeyClass::Node);
        if nodes.count() < 2 {
            return Ok(None);
        }
        let road = Box::pin(bus::Road::connect(context, setup, &caller)).await?;
        Ok(Some(Self {
            caller,
            route: Route::Bus(road),
            named: Vec::new(),
            own: setup.map(|setup| setup.node.clone()),
            timeout: context.global.timeout,
            bus_is_here: bus.own_server,
            leader: None,
        }))
    }

    /// Returns the controllers that the trust document names; over the local socket none is reached.
    pub fn controllers(&self) -> Vec<NodeId> {
        let is_controller = |class| class == KeyClass::Controller && self.is_by_bus();
        let holders = self.caller.ring.iter().map(|(_, holder)| holder);
        let controllers = holders.filter(|holder| is_controller(holder.class));
        let names = controllers.filter_map(|holder| holder.name.as_str().parse().ok());
        let mut names: Vec<NodeId> = names.collect();
        names.sort_by_key(|name| Some(name) != self.leader.as_ref());
        names
    }

    /// Asks this controller before all others: it leads, so it knows first.
    pub fn prefer(&mut self, leader: NodeId) {
        self.leader = Some(leader);
    }

    /// Asks something of one controller.
    ///
    /// # Errors
    /// When the question cannot be sent.
    pub async fn ask_controller(
        &mut self,
        controller: &NodeId,
        ask: Ask,
    ) -> Result<Pending<'_>, CliError> {
        let patience = match &ask {
            Ask::Arrivals { wait_ms, .. } | Ask::Rollout { wait_ms, .. } => {
                Duration::from_millis(u64::from(*wait_ms))
            }
            _ => Duration::ZERO,
        };
        let within = self.timeout.unwrap_or(ANSWER_AFTER_WAIT) + patience;
        let query = self.caller.query(ask, Audience::Nodes(vec![controller.clone()]), true)?;
        self.transmit(&query, true, within).await
    }

    /// Asks something of the audience.
    ///
    /// # Errors
    /// When the question cannot be sent.
    pub async fn ask(&mut self, ask: Ask) -> Result<Pending<'_>, CliError> {
        let patience = match &ask {
            Ask::Range { wait_ms, .. } => Duration::from_millis(u64::from(*wait_ms)),
            Ask::Logs { wait: Some(wait), .. } => Duration::from_millis(u64::from(wait.ms)),
            _ => Duration::ZERO,
        };
        let slack = match patience.is_zero() {
            true => READ_WITHIN,
            false => ANSWER_AFTER_WAIT,
        };
        let within = self.timeout.unwrap_or(slack) + patience;
        let sign = !matches!(self.route, Route::Local(_));
        let audience = match self.named.is_empty() {
            true => Audience::All,
            false => Audience::Nodes(self.named.clone()),
        };
        let query = self.caller.query(ask, audience, sign)?;
        self.transmit(&query, sign, within).await
    }

    /// Signs a wish for the audience. Sending it is another step, so that the same bytes can be sent again.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn wish(&self, action: Action) -> Result<Signed, CliError> {
        let nodes: Vec<NodeId> = match self.named.is_empty() {
            true => self.own.iter().cloned().collect(),
            false => self.named.clone(),
        };
        if nodes.is_empty() {
            return Err(CliError::new(Code::EMPTY_SELECTION, "a wish names its nodes")
                .hint("name them: --node NODE, or SERVICE@NODE"));
        }
        self.caller.intent(action, Audience::Nodes(nodes))
    }

    /// Signs a wish that is brought to its nodes some at a time, and may be accepted for so long.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn wish_for(
        &self,
        life: Duration,
        action: Action,
        nodes: &[NodeId],
    ) -> Result<Signed, CliError> {
        self.caller.intent_for(life, action, Audience::Nodes(nodes.to_vec()))
    }

    /// Says whether it goes over the bus, where nobody tells that an answer was lost.
    pub fn is_by_bus(&self) -> bool {
        matches!(self.route, Route::Bus(_))
    }

    /// Puts an artifact into the store of the fleet.
    ///
    /// # Errors
    /// When the bus takes none.
    pub async fn put_artifact(
        &self,
        place: &ObjectPlace,
        bytes: u64,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ObjectError> {
        put_artifact(self.road()?.connection(), place, bytes, from).await
    }

    /// Returns where an artifact is in the store of the fleet.
    pub fn artifact_place(&self, name: String) -> ObjectPlace {
        ObjectPlace { bucket: artifact_bucket_name(&self.caller.fleet), name }
    }

    /// Copies an object that lies on the bus, at most so many bytes and one.
    ///
    /// # Errors
    /// What was copied until then is not the object.
    pub async fn copy_object(
        &self,
        place: &ObjectPlace,
        bytes_max: u64,
        into: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, ObjectError> {
        copy_object(self.road()?.connection(), place, bytes_max, into).await
    }

    fn road(&self) -> Result<&bus::Road, ObjectError> {
        match &self.route {
            Route::Bus(road) => Ok(road),
            Route::Local(_) => Err(ObjectError::NoBus),
        }
    }

    /// Says whether nobody is left who could answer: what was spoken through is part of this machine's smgr, and that is
    /// down.
    pub fn is_gone_for_good(&self, context: &Context) -> bool {
        let is_here = match &self.route {
            Route::Local(_) => true,
            Route::Bus(_) => self.bus_is_here,
        };
        is_here && alive(context).is_none()
    }

    /// Returns until when outcomes are waited for.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.unwrap_or(OUTCOME_WITHIN)
    }

    /// Returns the fleet that the trust document is for.
    pub fn fleet(&self) -> &FleetId {
        &self.caller.fleet
    }

    /// Returns the keys that answers and events are verified with.
    pub fn ring(&self) -> &Keyring {
        &self.caller.ring
    }

    /// Sends a wish. The same wish may be sent any number of times; it is executed at most once.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn send(&mut self, wish: &Signed, until: Instant) -> Result<Pending<'_>, CliError> {
        let within = until.saturating_duration_since(Instant::now());
        self.transmit(wish, true, within).await
    }

    async fn transmit(
        &mut self,
        signed: &Signed,
        is_envelope: bool,
        within: Duration,
    ) -> Result<Pending<'_>, CliError> {
        let deadline = Instant::now() + within;
        let source = match &mut self.route {
            Route::Local(road) => {
                let (id, own) = road.send(&signed.bytes, is_envelope).await?;
                pending::Source::Local { road, id, own }
            }
            Route::Bus(road) => pending::Source::Bus(road.send(signed, within).await?),
        };
        Ok(Pending::new(source, &self.caller.ring, signed, deadline))
    }
}

/// Verifies an answer: the signature of a node's key, and that this node is the one that the answer names.
fn verified(bytes: &[u8], ring: &Keyring) -> Result<Answer, CliError> {
    let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).map_err(|error| distrust(&error))?;
    let opened = sealed.open(ring).map_err(|error| distrust(&error))?;
    let answer: Answer = codec::decode(opened.payload).map_err(|error| distrust(&error))?;
    let answers = matches!(opened.holder.class, KeyClass::Node | KeyClass::Controller);
    let is_node = opened.kind == Kind::Answer && answers;
    match is_node && opened.holder.name.as_str() == answer.node.as_str() {
        true => Ok(answer),
        false => Err(CliError::new(
            Code::BAD_SIGNATURE,
            format!("an answer in the name of {} is signed by {}", answer.node, opened.holder.name),
        )),
    }
}

fn distrust(error: &dyn std::error::Error) -> CliError {
    CliError::caused(Code::BAD_SIGNATURE, "an answer does not verify; it was not used", error)
}
