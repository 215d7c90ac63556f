//! The bus: one request to each node of the audience, and the answers as they come in.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::agent::setup::NodeSetup;
use crate::bus::{Answers, BusOptions, BusState, Connection, Credentials, NobodyListens};
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::wish::{Caller, Signed};
use crate::domain::code::Code;
use crate::domain::id::{FleetId, NodeId, Principal};
use crate::wire::payload::Audience;
use crate::wire::subject::{Callee, InboxPrefix, Subject};

/// Answers that wait while one is being verified; beyond it the library's own queue holds them.
const HEARD_MAX: usize = 256;

/// A connection to the bus.
#[derive(Debug)]
pub(super) struct Road {
    connection: Connection,
    fleet: FleetId,
}

/// Something that came back.
#[derive(Debug)]
pub(super) enum Heard {
    /// Bytes that claim to be an answer.
    Answer(Vec<u8>),
    /// The server knows of nobody who listens for this node.
    Nobody(NodeId),
    /// The connection ended: answers on their way are lost.
    Lost,
}

impl Road {
    pub(super) async fn connect(
        context: &Context,
        setup: Option<&NodeSetup>,
        caller: &Caller,
    ) -> Result<Self, CliError> {
        let bus = setup.and_then(|setup| setup.bus.as_ref());
        let urls = match &context.global.bus {
            Some(url) => vec![url.clone()],
            None => bus.map(|bus| bus.urls.clone()).unwrap_or_default(),
        };
        if urls.is_empty() {
            let error = CliError::new(Code::BUS_OFF, "no bus is known here").next("smgr help bus");
            return Err(match setup {
                Some(setup) => error.hint(format!(
                    "this machine is `{}`; other nodes are reached over a bus",
                    setup.node
                )),
                None => error,
            });
        }
        let inbox = InboxPrefix(caller.principal()?);
        let mut options = BusOptions::new(urls, inbox, "smgr command line");
        options.tls.ca = bus.and_then(|bus| bus.ca.clone()).or_else(|| context.told_bus_ca());
        // A fleet answers faster than its answers are verified, and what finds no room is lost.
        options.incoming_max = options.incoming_max.max(caller.ring.iter().count());
        let told = bus.and_then(|bus| bus.operator_nkey.clone());
        if let Some(path) = told.or_else(|| credentials_beside(context)) {
            options.credentials = Credentials::read(path)
                .map_err(|error| CliError::from_error(Code::BUS_REFUSED, &error))?;
        }
        let connection = Connection::dial(&options).await.map_err(|error| {
            let told = CliError::from_error(Code::BUS_UNREACHABLE, &error);
            match (options.encrypted(), &options.tls.ca) {
                (Ok(true), None) => told.hint(format!(
                    "who vouches for the bus of a fleet is in its bus-ca.pem, of which a copy belongs to {}",
                    short(&context.folder.bus_ca())
                )),
                (Ok(false), Some(_)) => {
                    told.hint("the bus of this fleet is encrypted: tls://HOST:PORT")
                }
                (Ok(_) | Err(_), _) => told,
            }
        })?;
        Ok(Self { connection, fleet: caller.fleet.clone() })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a wish to whichever controller leads.
    pub(super) async fn request(
        &self,
        signed: &Signed,
        principal: Principal,
        within: Duration,
    ) -> Result<Answers, CliError> {
        let subject = Subject::Request { fleet: self.fleet.clone(), principal };
        let sent = self.connection.request(&subject, signed.bytes.clone(), within).await;
        sent.map_err(|error| CliError::from_error(Code::BUS_UNREACHABLE, &error))
    }

    /// Sends the envelope to every node that it is meant for. Dropping the receiver ends the waiting.
    pub(super) async fn send(
        &self,
        signed: &Signed,
        within: Duration,
    ) -> Result<mpsc::Receiver<Heard>, CliError> {
        let (sender, receiver) = mpsc::channel(HEARD_MAX);
        let callees = match &signed.audience {
            Audience::All | Audience::Select { .. } => vec![(Callee::EVERY_NODE, None)],
            Audience::Nodes(nodes) => nodes
                .iter()
                .map(|node| {
                    let callee = Callee::node(node.clone())
                        .map_err(|error| CliError::from_error(Code::NO_SUCH_NODE, &error))?;
                    Ok((callee, Some(node.clone())))
                })
                .collect::<Result<_, CliError>>()?,
        };
        for (to, node) in callees {
            let subject = Subject::Call { fleet: self.fleet.clone(), to };
            let answers = self
                .connection
                .request(&subject, signed.bytes.clone(), within)
                .await
                .map_err(|error| CliError::from_error(Code::BUS_UNREACHABLE, &error))?;
            tokio::spawn(forward(answers, node, self.connection.state(), sender.clone()));
        }
        Ok(receiver)
    }
}

/// Passes answers on until the time is over or nobody takes them any more.
async fn forward(
    mut answers: Answers,
    node: Option<NodeId>,
    mut bus: watch::Receiver<BusState>,
    to: mpsc::Sender<Heard>,
) {
    loop {
        let heard = tokio::select! {
            biased;
            answer = answers.next() => match answer {
                Ok(Some(bytes)) => Heard::Answer(bytes),
                Ok(None) => return,
                Err(NobodyListens) => match node {
                    Some(node) => {
                        drop(to.send(Heard::Nobody(node)).await); // The caller may have stopped waiting.
                        return;
                    }
                    None => {
                        warn!("no node listens on this bus");
                        return;
                    }
                },
            },
            () = down(&mut bus) => {
                drop(to.send(Heard::Lost).await);
                return;
            }
            () = to.closed() => return,
        };
        if to.send(heard).await.is_err() {
            return;
        }
    }
}

/// Waits until the connection is lost.
async fn down(bus: &mut watch::Receiver<BusState>) {
    drop(bus.wait_for(|bus| !bus.is_up()).await);
}

/// Finds the credentials of a machine that commands but was not set up as a node, such as a CI runner.
fn credentials_beside(context: &Context) -> Option<PathBuf> {
    let keys = context.folder.keys();
    ["operator.nk", "operator.creds"]
        .map(|name| keys.join(name))
        .into_iter()
        .find(|path| path.exists())
}
