//! One trust envelope for a whole fleet on one machine: every member has a folder and keys of its own, and the root key
//! in the folder of the first says which of them count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::folder::StateFolder;
use super::keyfile::{
    KeyName, LoadKeyError, MakeKeysError, hex_line, load_key, load_trust, make_key, make_key_at,
    read_capped, write,
};
use crate::domain::id::{Digest, FleetId, NodeId, Principal};
use crate::domain::intent::Verb;
use crate::domain::policy::{Grant, KeyClass, Kind, Names};
use crate::domain::time::UnixMicros;
use crate::wire::codec;
use crate::wire::envelope::{TRUST_BYTES_MAX, seal};
use crate::wire::key::{Keyring, PublicKey, Signer};
use crate::wire::payload::{Enrolled, PAYLOAD_VERSION, Trust, TrustedKey};

/// A node or controller of the fleet, and the folder that is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeId,
    /// Its state folder.
    pub folder: StateFolder,
}

/// Who belongs to a fleet on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The fleet.
    pub fleet: FleetId,
    /// The person whose key `operator.key` in the first folder is.
    pub operator: Principal,
    /// The nodes; the folder of the first holds the root key and the operator's.
    pub nodes: Vec<Member>,
    /// The nodes whose keys are kept elsewhere.
    pub elsewhere: BTreeMap<NodeId, PublicKey>,
    /// What is said of nodes, by which they are selected.
    pub labels: BTreeMap<NodeId, BTreeMap<String, String>>,
    /// The controllers.
    pub controllers: Vec<Member>,
    /// The jobs that ask controllers by HTTP, and what they may. Each controller has a key of its own for each of them.
    pub jobs: BTreeMap<Principal, Vec<Grant>>,
    /// The time that the document bears.
    pub now: UnixMicros,
}

/// What a fleet verifies with.
#[derive(Debug)]
pub struct FleetKeys {
    /// The trust document that every member has.
    pub trust: Trust,
    /// Its keys.
    pub ring: Keyring,
    /// Whether this call made the first one.
    pub made: bool,
}

/// Makes the keys of every member and the one trust envelope that names them, or takes what is there.
///
/// A fleet that has grown gets the next version of the envelope, with all that the one before said. Nothing may run on
/// the folders of new members meanwhile; who runs already takes the new version in at its next start.
///
/// # Errors
/// When the disk refuses, a key is open to others, or the files of a folder do not belong together.
///
/// # Panics
/// If there is no node.
pub fn enrol(wanted: &Enrolment) -> Result<FleetKeys, MakeKeysError> {
    let first = &wanted.nodes.first().expect("invariant: a fleet has a node").folder;
    for member in wanted.nodes.iter().chain(&wanted.controllers) {
        let failed =
            |source| MakeKeysError::Write { path: member.folder.root().to_owned(), source };
        member.folder.make().map_err(failed)?;
    }
    let operator = key(first, KeyName::Operator)?;
    let mut roster = Vec::with_capacity(wanted.nodes.len() + wanted.elsewhere.len());
    let operates = everything(Names::All);
    let mut keys = vec![(operator.public(), wanted.operator.clone(), KeyClass::Human, operates)];
    for Member { name, folder } in &wanted.nodes {
        let here = everything(Names::Only(vec![name.clone()]));
        let node = key(folder, KeyName::Node)?;
        roster.push(enrolled(wanted, name, node.public()));
        keys.push((node.public(), principal(name), KeyClass::Node, vec![]));
        let root = "root".parse().expect("a constant that is a name");
        keys.push((key(folder, KeyName::Local)?.public(), root, KeyClass::Local, here));
    }
    for (name, key) in &wanted.elsewhere {
        roster.push(enrolled(wanted, name, *key));
        keys.push((*key, principal(name), KeyClass::Node, vec![]));
    }
    for Member { name, folder } in &wanted.controllers {
        let reads = Grant {
            verbs: Names::Only(vec![Verb::Status, Verb::Events]),
            services: Names::All,
            nodes: Names::All,
        };
        let signer = key(folder, KeyName::Controller)?;
        keys.push((signer.public(), principal(name), KeyClass::Controller, vec![reads]));
        for (job, grants) in &wanted.jobs {
            let path = job_key(folder, job);
            let signer = match load_key(&path) {
                Err(LoadKeyError::Missing { .. }) => make_key_at(&path)?,
                loaded => loaded?,
            };
            keys.push((signer.public(), job.clone(), KeyClass::Ci, grants.clone()));
        }
    }
    let keys: Vec<TrustedKey> = keys
        .into_iter()
        .map(|(key, name, class, grants)| TrustedKey {
            key: Digest(key.to_bytes()),
            name,
            class,
            grants,
        })
        .collect();
    let made = !first.trust().exists();
    let before = if made { None } else { Some(load_trust(first)?.0) };
    if let Some(trust) = next(wanted, before, keys, roster) {
        let root = key(first, KeyName::Root)?;
        if !first.root_pin().exists() {
            write(&first.root_pin(), hex_line(root.public()).as_bytes(), 0o644)?;
        }
        write(&first.trust(), &seal(Kind::Trust, &codec::encode(&trust), &root), 0o644)?;
    }
    let (trust, ring) = load_trust(first)?;
    for member in wanted.nodes[1..].iter().chain(&wanted.controllers) {
        copy(first, &member.folder)?;
    }
    Ok(FleetKeys { trust, ring, made })
}

/// Returns the document that has to be signed; `None` when the one that is there says it all.
fn next(
    wanted: &Enrolment,
    before: Option<Trust>,
    keys: Vec<TrustedKey>,
    nodes: Vec<Enrolled>,
) -> Option<Trust> {
    let Some(before) = before else {
        return Some(Trust {
            v: PAYLOAD_VERSION,
            version: 1,
            fleet: wanted.fleet.clone(),
            issued: wanted.now,
            keys,
            revoked: vec![],
            nodes,
        });
    };
    let all: BTreeMap<Digest, &TrustedKey> = keys.iter().map(|key| (key.key, key)).collect();
    let were: BTreeSet<Digest> = before.keys.iter().map(|key| key.key).collect();
    // What a job may is what is wanted of it; one that is wanted no more may nothing.
    let kept = |known: &TrustedKey| {
        let wanted = all.get(&known.key).copied();
        match (known.class, wanted) {
            (KeyClass::Ci, Some(wanted)) => wanted.clone(),
            (KeyClass::Ci, None) => TrustedKey { grants: Vec::new(), ..known.clone() },
            _ => known.clone(),
        }
    };
    let mut after: Vec<_> = before.keys.iter().map(kept).collect();
    after.extend(keys.iter().filter(|key| !were.contains(&key.key)).cloned());
    let version = before.version + 1;
    (after != before.keys || before.nodes != nodes).then_some(Trust {
        version,
        nodes,
        issued: wanted.now,
        keys: after,
        ..before
    })
}

/// Returns where a controller keeps the key that it holds for a job.
pub fn job_key(controller: &StateFolder, job: &Principal) -> PathBuf {
    controller.keys().join("jobs").join(format!("{job}.key"))
}

fn enrolled(wanted: &Enrolment, name: &NodeId, key: PublicKey) -> Enrolled {
    let labels = wanted.labels.get(name).cloned().unwrap_or_default();
    Enrolled { node: name.clone(), kid: key.kid(), labels }
}

fn everything(nodes: Names<NodeId>) -> Vec<Grant> {
    vec![Grant { verbs: Names::All, services: Names::All, nodes }]
}

fn principal(name: &NodeId) -> Principal {
    name.as_str().parse().expect("names of nodes and principals are alike")
}

fn key(folder: &StateFolder, name: KeyName) -> Result<Signer, MakeKeysError> {
    match load_key(&name.path(folder)) {
        // A root key that was taken away is asked for, and not made anew.
        Err(LoadKeyError::Missing { .. })
            if name != KeyName::Root || !folder.root_pin().exists() =>
        {
            make_key(folder, name)
        }
        loaded => Ok(loaded?),
    }
}

/// Gives a member the trust of the first, and the pin when it has none.
fn copy(first: &StateFolder, member: &StateFolder) -> Result<(), MakeKeysError> {
    for (from, to, bytes_max) in [
        (first.root_pin(), member.root_pin(), 256),
        (first.trust(), member.trust(), TRUST_BYTES_MAX),
    ] {
        let failed = |source| MakeKeysError::Write { path: to.clone(), source };
        let bytes = read_capped(&from, bytes_max).map_err(failed)?;
        if read_capped(&to, bytes_max).ok().as_ref() != Some(&bytes) {
            write(&to, &bytes, 0o644)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolment(temp: &tempfile::TempDir, nodes: &[&str]) -> Enrolment {
        let member = |name: &&str| Member {
            name: name.parse().unwrap(),
            folder: StateFolder::new(temp.path().join(name)),
        };
        Enrolment {
            fleet: "local".parse().unwrap(),
            operator: "ana".parse().unwrap(),
            nodes: nodes.iter().map(member).collect(),
            elsewhere: BTreeMap::new(),
            labels: BTreeMap::new(),
            controllers: vec![member(&"c1")],
            jobs: BTreeMap::new(),
            now: UnixMicros(1),
        }
    }

    #[test]
    fn every_member_has_the_one_envelope_and_it_names_the_key_of_each() {
        let temp = tempfile::tempdir().unwrap();
        let wanted = enrolment(&temp, &["n1", "n2", "n3"]);
        let enrolled = enrol(&wanted).unwrap();
        assert!(enrolled.made && enrolled.trust.keys.len() == 8);
        for member in &wanted.nodes {
            let (trust, ring) = load_trust(&member.folder).unwrap();
            assert_eq!(trust, enrolled.trust);
            let own = load_key(&KeyName::Node.path(&member.folder)).unwrap();
            assert_eq!(ring.get(own.kid()).unwrap().1.name.as_str(), member.name.as_str());
        }
        assert!(!KeyName::Root.path(&wanted.nodes[1].folder).exists());
    }

    #[test]
    fn a_job_may_what_is_wanted_of_it_and_nothing_once_it_is_wanted_no_more() {
        let temp = tempfile::tempdir().unwrap();
        let mut wanted = enrolment(&temp, &["n1"]);
        let job: Principal = "shop-deploy".parse().unwrap();
        let restarts = Grant {
            verbs: Names::Only(vec![Verb::Restart]),
            services: Names::All,
            nodes: Names::All,
        };
        let grants_of = |keys: &FleetKeys| {
            let all = keys.trust.keys.iter();
            let mut jobs = all.filter(|key| key.class == KeyClass::Ci && key.name == job);
            jobs.next().map(|key| key.grants.clone())
        };
        wanted.jobs.insert(job.clone(), vec![restarts.clone()]);
        let first = enrol(&wanted).unwrap();
        assert_eq!(grants_of(&first), Some(vec![restarts.clone()]));
        let held = load_key(&job_key(&wanted.controllers[0].folder, &job)).unwrap();
        assert_eq!(first.ring.get(held.kid()).unwrap().1.name, job);
        assert_eq!(enrol(&wanted).unwrap().trust.version, first.trust.version);
        wanted.jobs.insert(job.clone(), vec![restarts.clone(), restarts]);
        assert_eq!(grants_of(&enrol(&wanted).unwrap()).unwrap().len(), 2);
        wanted.jobs.clear();
        assert_eq!(grants_of(&enrol(&wanted).unwrap()), Some(vec![]));
    }

    #[test]
    fn a_fleet_that_grows_keeps_its_keys_and_gets_the_next_version() {
        let temp = tempfile::tempdir().unwrap();
        let before = enrol(&enrolment(&temp, &["n1"])).unwrap().trust;
        let same = enrol(&enrolment(&temp, &["n1"])).unwrap();
        assert!(!same.made && same.trust == before);
        let after = enrol(&enrolment(&temp, &["n1", "n2"])).unwrap().trust;
        assert_eq!((before.version, after.version), (1, 2));
        assert_eq!(after.keys[..before.keys.len()], before.keys);
        let n1 = StateFolder::new(temp.path().join("n1"));
        assert_eq!(load_trust(&n1).unwrap().0, after);
    }
}
