//! A whole fleet on one machine: who belongs to it, and where each member keeps what is its own.
//!
//! The first node has the state folder itself, and with it the keys of the operator, the bus and the controllers as
//! services; the others have folders inside it. So every command means the same with a fleet as with one node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::args::Label;
use super::context::{Context, short};
use super::error::CliError;
use crate::domain::code::Code;
use crate::domain::id::{NodeId, Principal};
use crate::domain::policy::Grant;
use crate::head::enrol::{Machine, Member};
use crate::head::folder::{StateFolder, write_whole};

/// More nodes than one machine is asked to bear: each is three processes.
pub const NODES_MAX: u16 = 64;

/// The version of the file's shape.
const VERSION: u8 = 1;

/// The members of a fleet on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// The version of this shape.
    v: u8,
    /// The nodes; the first has the state folder itself.
    pub nodes: Vec<NodeId>,
    /// The controllers.
    pub controllers: Vec<NodeId>,
    /// The nodes on other machines that were admitted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machines: BTreeMap<NodeId, Machine>,
    /// Where the bus listens for other machines; absent: on the loopback alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether the bus is encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// By which names others reach an encrypted bus, besides where it listens.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<String>,
    /// What is said of nodes, by which they are selected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<NodeId, BTreeMap<String, String>>,
    /// The jobs that ask controllers by HTTP, and what they may.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub jobs: BTreeMap<Principal, Vec<Grant>>,
}

impl Fleet {
    /// Returns the fleet of this state folder, `None` where it is one node or nothing yet.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn read(context: &Context) -> Result<Option<Self>, CliError> {
        Self::read_as(context, |bytes| serde_json::from_slice(bytes))
    }

    /// The same without what people write into it: what jobs may, and labels. So a mistake there is in nobody's way.
    ///
    /// # Errors
    /// When the file is there and does not name the members.
    pub fn read_members(context: &Context) -> Result<Option<Self>, CliError> {
        Self::read_as(context, |bytes| {
            let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
            if let Some(members) = value.as_object_mut() {
                members.retain(|name, _| matches!(name.as_str(), "v" | "nodes" | "controllers"));
            }
            serde_json::from_value(value)
        })
    }

    fn read_as(
        context: &Context,
        parse: impl FnOnce(&[u8]) -> serde_json::Result<Self>,
    ) -> Result<Option<Self>, CliError> {
        let path = path(context);
        let failed = |error: io::Error| {
            CliError::caused(Code::FILE_UNREADABLE, "failed to read the fleet", &error)
                .at(short(&path))
        };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed)?,
        };
        let fleet = parse(&bytes).map_err(|why| failed(why.into()))?;
        match (fleet.v, fleet.nodes.is_empty()) {
            (VERSION, false) => Ok(Some(fleet)),
            _ => Err(failed(io::Error::other("it is not one of this version"))),
        }
    }

    /// Returns the fleet with as many nodes as asked for, `n1` and so on; it never gets smaller.
    ///
    /// # Errors
    /// When more are asked for than one machine is to bear, or the folder belongs to a single node.
    pub fn wanted(context: &Context, asked: Option<u16>) -> Result<Option<Self>, CliError> {
        let before = Self::read(context)?;
        let Some(asked) = asked else { return Ok(before) };
        if asked == 0 || asked > NODES_MAX {
            let what = format!("a fleet on one machine has 1 to {NODES_MAX} nodes, not {asked}");
            return Err(CliError::new(Code::USAGE, what));
        }
        let own = context.setup()?.filter(|_| before.is_none());
        if let Some(setup) = own {
            let what = format!("this state folder is that of the single node {}", setup.node);
            return Err(CliError::new(Code::USAGE, what)
                .at(short(context.folder.root()))
                .hint("a fleet begins in a folder of its own: smgr up --nodes 3 --state DIR"));
        }
        let known = before.as_ref().map_or(0, |fleet| fleet.nodes.len());
        if usize::from(asked) < known {
            let what = format!("the fleet has {known} nodes, and {asked} are asked for");
            return Err(CliError::new(Code::USAGE, what).hint(
                "in this version a fleet never gets smaller; start it with all of them: smgr up",
            ));
        }
        let name = |number: u16| format!("n{number}").parse().expect("a letter and a number");
        let nodes: Vec<NodeId> = (1..=asked).map(name).collect();
        let Some(before) = before else {
            return Ok(Some(Self {
                v: VERSION,
                nodes,
                controllers: vec!["c1".parse().expect("a constant that is a name")],
                machines: BTreeMap::new(),
                listen: None,
                tls: false,
                names: BTreeSet::new(),
                labels: BTreeMap::new(),
                jobs: BTreeMap::new(),
            }));
        };
        if let Some(node) = nodes.iter().find(|node| before.machines.contains_key(*node)) {
            let what = format!("{node} is the name of a node on another machine already");
            return Err(CliError::new(Code::USAGE, what).next(format!("smgr node remove {node}")));
        }
        Ok(Some(Self { nodes, ..before }))
    }

    /// Lets other machines reach the bus there, from its next start on. It is encrypted, wherever that is, unless some reach it
    /// in clear already: these know nobody who vouches for it, and would be locked out.
    pub fn listen_at(&mut self, address: SocketAddr) {
        self.tls |= self.listen.is_none() && self.machines.is_empty();
        self.listen = Some(address);
    }

    /// Says something of nodes, over what was said of them before.
    ///
    /// # Errors
    /// When one is named that there is not.
    pub fn label(&mut self, labels: &[Label]) -> Result<(), CliError> {
        let all: Vec<NodeId> = self.nodes.iter().chain(self.machines.keys()).cloned().collect();
        for Label { node, key, value } in labels {
            if let Some(unknown) = node.as_ref().filter(|node| !all.contains(node)) {
                let what = format!("there is no node {unknown} to be labelled");
                return Err(CliError::new(Code::NO_SUCH_NODE, what));
            }
            for node in node.as_ref().map_or(&all[..], std::slice::from_ref) {
                let known = self.labels.entry(node.clone()).or_default();
                known.insert(key.clone(), value.clone());
            }
        }
        Ok(())
    }

    /// Keeps others from changing who belongs to the fleet, until the file is dropped.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn lock(context: &Context) -> Result<File, CliError> {
        let path = context.folder.root().join("fleet.lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        file.and_then(|file| file.lock().map(|()| file)).map_err(|error| {
            CliError::caused(Code::IO, "failed to lock the fleet", &error).at(short(&path))
        })
    }

    /// Writes the fleet down.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, context: &Context) -> Result<(), CliError> {
        let text = serde_json::to_vec_pretty(self).expect("a plain value becomes JSON");
        write_whole(&path(context), &text, 0o644).map_err(|error| {
            CliError::caused(Code::IO, "failed to write the fleet", &error)
                .at(short(&path(context)))
        })
    }

    /// Returns what each node works with, the first as it was called.
    pub fn contexts(&self, context: &Context) -> Vec<Context> {
        let others = self.nodes[1..].iter().map(|node| {
            let state = folder(context, node);
            Context {
                services: state.join("config/services.d"),
                packages: Some(state.join("config/vendor.d")),
                folder: StateFolder::new(state),
                ..context.clone()
            }
        });
        std::iter::once(context.clone()).chain(others).collect()
    }

    /// Returns the nodes with their folders.
    pub fn node_members(&self, context: &Context) -> Vec<Member> {
        let folders = self.contexts(context).into_iter().map(|context| context.folder);
        let nodes = self.nodes.iter().cloned().zip(folders);
        nodes.map(|(name, folder)| Member { name, folder }).collect()
    }

    /// Returns the controllers with their folders.
    pub fn controller_members(&self, context: &Context) -> Vec<Member> {
        let member = |name: &NodeId| Member {
            name: name.clone(),
            folder: StateFolder::new(folder(context, name)),
        };
        self.controllers.iter().map(member).collect()
    }
}

/// Returns the state folders of all nodes of this machine as they lie there, whatever `fleet.json` says.
pub fn folders(context: &Context) -> Vec<Context> {
    let inside = std::fs::read_dir(context.folder.members());
    let inside = inside.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut others: Vec<PathBuf> = inside.filter(|it| it.join("node.json").exists()).collect();
    others.sort();
    let of = |state| Context { folder: StateFolder::new(state), ..context.clone() };
    std::iter::once(context.clone()).chain(others.into_iter().map(of)).collect()
}

fn path(context: &Context) -> PathBuf {
    context.folder.root().join("fleet.json")
}

fn folder(context: &Context, member: &NodeId) -> PathBuf {
    context.folder.members().join(member.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(more: &str) -> Fleet {
        let text = format!(r#"{{"v": 1, "nodes": ["n1"], "controllers": ["c1"]{more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_bus_that_others_reach_in_clear_stays_so_and_every_other_one_is_encrypted() {
        let at = "10.0.0.1:4222".parse().unwrap();
        let machine =
            r#"{"node": "KEY", "local": "KEY", "bus": ""}"#.replace("KEY", &"0".repeat(64));
        for (more, is_encrypted) in [
            (String::new(), true),
            (r#", "listen": "10.0.0.2:4222""#.to_owned(), false),
            (r#", "listen": "10.0.0.2:4222", "tls": true"#.to_owned(), true),
            // They came through a tunnel.
            (format!(r#", "machines": {{"web-1": {machine}}}"#), false),
        ] {
            let mut fleet = fleet(&more);
            fleet.listen_at(at);
            assert_eq!((fleet.listen, fleet.tls), (Some(at), is_encrypted), "{more}");
            fleet.listen_at(at);
            assert_eq!(fleet.tls, is_encrypted, "{more}: again");
        }
    }
}
