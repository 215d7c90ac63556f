//! What an emulated node wants said, in order; its connection says it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::domain::id::{FleetId, NodeId, ServiceId};
use crate::wire::subject::{Inbox, Scope, Subject, event_kind};

/// A message, and where it goes.
#[derive(Debug)]
pub(super) enum Said {
    /// Everybody may hear it.
    Told(Subject, Arc<[u8]>),
    /// Somebody waits for it.
    Answer(Inbox, Vec<u8>),
}

/// What waits to be said. Emptied after each input, so it holds what one input leads to.
#[derive(Debug)]
pub(super) struct Voice {
    fleet: FleetId,
    node: NodeId,
    said: VecDeque<Said>,
}

impl Voice {
    pub(super) fn new(fleet: FleetId, node: NodeId) -> Self {
        Self { fleet, node, said: VecDeque::new() }
    }

    pub(super) fn event(&mut self, kind: &str, service: Option<ServiceId>, row: Arc<[u8]>) {
        let Ok(kind) = event_kind(kind) else { return };
        let (fleet, origin) = (self.fleet.clone(), self.node.clone());
        let subject = Subject::Event { fleet, origin, scope: Scope::from(service), kind };
        self.said.push_back(Said::Told(subject, row));
    }

    pub(super) fn beat(&mut self, bytes: Arc<[u8]>) {
        let subject = Subject::Beat { fleet: self.fleet.clone(), origin: self.node.clone() };
        self.said.push_back(Said::Told(subject, bytes));
    }

    pub(super) fn answer(&mut self, to: Inbox, bytes: Vec<u8>) {
        self.said.push_back(Said::Answer(to, bytes));
    }

    pub(super) fn len(&self) -> usize {
        self.said.len()
    }

    /// Leaves the later ones unsaid.
    pub(super) fn truncate(&mut self, len: usize) {
        self.said.truncate(len);
    }

    pub(super) fn next(&mut self) -> Option<Said> {
        self.said.pop_front()
    }
}
