//! What two services must not have in common: a folder of logs, an address to listen at.

use std::collections::BTreeMap;

use super::assemble::LoadedService;
use super::merge::Merged;
use super::mistake::Mistake;
use super::source::Place;
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::domain::spec::{Address, Spec};

/// Finds services whose instances would write one and the same file.
pub(super) fn logs(services: &BTreeMap<ServiceId, LoadedService>) -> Vec<Mistake> {
    let mut folders = BTreeMap::new();
    let mut mistakes = Vec::new();
    for (name, service) in services {
        let expand = |variable: &str| match variable {
            "service" => Some(name.to_string()),
            // Runs, instances and nodes never make one service's folder another's.
            other => Some(format!("${{{other}}}")),
        };
        let Ok(folder) = service.spec.log.dir.expand(expand) else { continue };
        if let Some(other) = folders.insert(folder, name) {
            let label = format!("`{name}` and `{other}` write their log into one folder");
            let effective = service.effective.get("log.dir").map(|dir| &dir.origin);
            let place = effective.and_then(|origin| origin.file.clone());
            let place = place.or(service.origin.file.clone()).unwrap_or_default();
            let mistake = Mistake::new(Code::SHARED_LOG, place, None, label);
            mistakes.push(mistake.hint("put ${service} into `dir` of [log]"));
        }
    }
    mistakes
}

/// One socket of one service, and all addresses that it will have.
pub(super) struct Listens {
    service: ServiceId,
    place: Place,
    at: Vec<Address>,
}

/// Lists where a service listens, as far as that is the same for each of its runs.
pub(super) fn listens(name: &ServiceId, spec: &Spec, merged: &Merged) -> Vec<Listens> {
    let one = |socket: &str| {
        let place = merged.place(&["socket", socket, "listen"])?.clone();
        let declared = &spec.socket[socket];
        let instances = if declared.per_instance { spec.instances } else { 1 };
        let at = (0..instances).filter_map(|instance| {
            let text = declared.listen.expand(|variable| match variable {
                "service" => Some(name.to_string()),
                "instance" => Some(instance.to_string()),
                // One machine has one of each.
                "node" | "fleet" => Some(variable.to_owned()),
                _ => None,
            });
            text.ok()?.parse().ok()
        });
        Some(Listens { service: name.clone(), place, at: at.collect() })
    };
    spec.socket.keys().filter_map(|socket| one(socket)).collect()
}

/// Finds sockets of which only the first could be opened.
pub(super) fn sockets(all: &[Listens]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (number, later) in all.iter().enumerate() {
        let clash = all[..number].iter().find_map(|earlier| {
            let both = || later.at.iter().flat_map(|at| earlier.at.iter().map(move |of| (at, of)));
            both().find(|(at, of)| at.excludes(of)).map(|(_, of)| (earlier, of))
        });
        let Some((earlier, address)) = clash else { continue };
        let there = format!("{}:{}", earlier.place.source.shown, earlier.place.line());
        let label = match earlier.service == later.service {
            true => {
                format!("another socket of `{}` listens at {address}, in {there}", later.service)
            }
            false => format!("`{}` listens at {address}, in {there}", earlier.service),
        };
        let mistake = later.place.mistake(Code::SHARED_SOCKET, label);
        mistakes.push(mistake.hint("give one of them another port or path"));
    }
    mistakes
}
