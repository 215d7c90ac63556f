//! The one name form of every screen: `service/instance@node`, without the parts that say nothing.

use std::collections::BTreeSet;

use crate::cli::view::View;
use crate::domain::event::Event;
use crate::domain::id::{NodeId, ServiceId};
use crate::wire::payload::EventRecord;

/// Knows which parts of a name say something here.
#[derive(Clone, Debug, Default)]
pub struct Names {
    several: BTreeSet<ServiceId>,
    with_node: bool,
}

impl Names {
    /// Names for one machine of which nothing is known yet.
    pub fn of_one_machine() -> Self {
        Self::default()
    }

    /// Names for several machines.
    pub fn of_fleet() -> Self {
        Self { with_node: true, ..Self::default() }
    }

    /// Names for what was answered.
    pub fn of(view: &View<'_>) -> Self {
        let services = view.nodes.iter().flat_map(|node| &node.services);
        let several = services.filter(|service| service.instances > 1);
        Self {
            several: several.map(|service| service.service.clone()).collect(),
            with_node: view.has_several_nodes(),
        }
    }

    /// Takes in what an event tells about how many instances a service has.
    pub fn learn(&mut self, record: &EventRecord, event: Option<&Event>) {
        let Some(service) = &record.service else {
            return;
        };
        if record.index.is_some_and(|index| index > 0) {
            self.several.insert(service.clone());
        }
        if let Some(Event::ServiceAdded(added)) = event {
            match added.instances {
                0 | 1 => self.several.remove(service),
                _ => self.several.insert(service.clone()),
            };
        }
    }

    /// Returns the name of an instance.
    pub fn instance(&self, service: &ServiceId, index: u16, node: &NodeId) -> String {
        let mut name = service.to_string();
        if index > 0 || self.several.contains(service) {
            name.push_str(&format!("/{index}"));
        }
        self.on(name, node)
    }

    /// Returns the name of a service.
    pub fn service(&self, service: &ServiceId, node: &NodeId) -> String {
        self.on(service.to_string(), node)
    }

    /// Returns the name of whatever an event is about: an instance, a service or the node.
    pub fn place(&self, record: &EventRecord) -> String {
        match (&record.service, record.index) {
            (Some(service), Some(index)) => self.instance(service, index, &record.origin),
            (Some(service), None) => self.service(service, &record.origin),
            (None, _) => record.origin.to_string(),
        }
    }

    /// Returns the name of a part of smgr.
    pub fn part(&self, part: &str, node: &NodeId) -> String {
        self.on(part.to_owned(), node)
    }

    fn on(&self, name: String, node: &NodeId) -> String {
        if self.with_node { format!("{name}@{node}") } else { name }
    }
}
