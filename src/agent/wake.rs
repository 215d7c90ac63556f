//! All that can wake the agent, in one closed list, and the one queue through which it comes.

use std::os::fd::OwnedFd;

use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use super::local::Caller;
use super::logs;
use super::outlet::Outlet;
use super::signs::Sign;
use crate::domain::health::Answer;
use crate::domain::id::{CheckName, Digest, Generation, InstanceId, RunId, ServiceId};
use crate::domain::time::UnixMicros;
use crate::ipc::hello::Hello;
use crate::ipc::keeper::{FromKeeper, Isolation, Trees};
use crate::ipc::local::RequestId;
use crate::ipc::uplink::FromUplink;
use crate::store::{Expired, LogNotice};

/// What may wait for the agent: a burst of facts of every service of a full node. Sources wait when it is full.
pub(super) const QUEUE: usize = 4096;

/// The receiving end belongs to the task, the others to its sources.
pub(super) type Waker = mpsc::Sender<Wake>;

/// One reason to wake.
#[derive(Debug)]
pub(super) enum Wake {
    /// A keeper was reached; operations go to `outlet`.
    KeeperUp { hello: Hello, trees: Trees, isolation: Isolation, outlet: Outlet },
    /// The keeper said something.
    Keeper { frame: FromKeeper, descriptors: Vec<OwnedFd> },
    /// The connection to the keeper ended.
    KeeperDown,
    /// An uplink connected.
    UplinkUp { outlet: Outlet },
    /// The uplink said something.
    Uplink { frame: FromUplink },
    /// The uplink went away.
    UplinkDown,
    /// Somebody at the local socket sends an envelope.
    LocalEnvelope { caller: Caller, id: RequestId, bytes: ByteBuf },
    /// Somebody at the local socket asks for a reading.
    LocalRead { caller: Caller, id: RequestId, bytes: ByteBuf },
    /// The log tells how it stands.
    Store(LogNotice),
    /// The logs of services tell something.
    Logs(logs::LogNotice),
    /// A datagram of a service, which is in its socket still.
    Notify { instance: InstanceId, sign: Sign },
    /// A run wrote to its readiness descriptor.
    ReadyFd { instance: InstanceId, run: RunId },
    /// A probe of a run came to its answer.
    Probed { instance: InstanceId, run: RunId, check: CheckName, answer: Answer },
    /// A page of the log was read for somebody who waits.
    Ranged(super::queries::Page),
    /// The files of a release are to be fetched through the uplink.
    Download(super::release::Download),
    /// The files of a release are here, or are not to be had.
    Staged(super::release::Files),
    /// What a service runs was read.
    Proved {
        service: ServiceId,
        generation: Generation,
        since: UnixMicros,
        running: Result<Option<Digest>, String>,
    },
    /// Segments of the log that may be dropped.
    Expired(Vec<Expired>),
    /// The process was asked to end.
    Terminate,
}
