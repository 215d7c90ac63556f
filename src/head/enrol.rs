//! One trust envelope for a whole fleet on one machine: every member has a folder and keys of its own, and the root key
//! in the folder of the first says which of them count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::folder::StateFolder;
use super::keyfile::{
    KeyName, LoadKeyError, MakeKeysError, hex_line, key_of, load_key, load_trust, make_key_at,
    read_capped, write,
};
use super::trust::ring_of;
use crate::domain::id::{Digest, FleetId, NodeId, Principal};
use crate::domain::intent::Verb;
use crate::domain::policy::{Grant, KeyClass, Kind, Names};
use crate::domain::time::UnixMicros;
use crate::wire::codec;
use crate::wire::envelope::{TRUST_BYTES_MAX, seal};
use crate::wire::key::{Keyring, PublicKey};
use crate::wire::payload::{Enrolled, PAYLOAD_VERSION, Trust, TrustedKey};

/// A node or controller of the fleet, and the folder that is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeId,
    /// Its state folder.
    pub folder: StateFolder,
}

/// A node on another machine, by the public halves of the keys that never leave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Signs its events and answers.
    #[serde(with = "as_hex")]
    pub node: Digest,
    /// Signs what root of that machine wants of it.
    #[serde(with = "as_hex")]
    pub local: Digest,
    /// Its user of the bus, a public NKey: `U…`.
    pub bus: String,
}

/// Public keys as people see them.
mod as_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::domain::id::Digest;

    pub(super) fn serialize<S: Serializer>(key: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Who belongs to a fleet: what runs on this machine, and the nodes on others that were admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The fleet.
    pub fleet: FleetId,
    /// The person whose key `operator.key` in the first folder is.
    pub operator: Principal,
    /// The nodes; the folder of the first holds the root key and the operator's.
    pub nodes: Vec<Member>,
    /// The nodes on other machines. Those of before that are missing here are trusted no more.
    pub machines: BTreeMap<NodeId, Machine>,
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
    let operator = key_of(first, KeyName::Operator)?;
    let mut roster = Vec::with_capacity(wanted.nodes.len());
    let mut keys =
        vec![(operator, wanted.operator.clone(), KeyClass::Human, everything(Names::All))];
    for Member { name, folder } in &wanted.nodes {
        let here = everything(Names::Only(vec![name.clone()]));
        let node = key_of(folder, KeyName::Node)?;
        let labels = wanted.labels.get(name).cloned().unwrap_or_default();
        roster.push(Enrolled { node: name.clone(), kid: node.kid(), labels });
        keys.push((node, principal(name), KeyClass::Node, vec![]));
        let root = "root".parse().expect("a constant that is a name");
        keys.push((key_of(folder, KeyName::Local)?, root, KeyClass::Local, here));
    }
    let mut public: Vec<TrustedKey> = Vec::with_capacity(2 * wanted.machines.len());
    for (name, Machine { node, local, .. }) in &wanted.machines {
        let kid = PublicKey::from_bytes(&node.0).map_err(|_| not_a_key(name))?.kid();
        PublicKey::from_bytes(&local.0).map_err(|_| not_a_key(name))?;
        let labels = wanted.labels.get(name).cloned().unwrap_or_default();
        roster.push(Enrolled { node: name.clone(), kid, labels });
        let here = everything(Names::Only(vec![name.clone()]));
        let root = "root".parse().expect("a constant that is a name");
        let trusted = |key: &Digest, name, class, grants| TrustedKey {
            key: *key,
            name,
            class,
            grants,
            until: None,
        };
        public.push(trusted(node, principal(name), KeyClass::Node, vec![]));
        public.push(trusted(local, root, KeyClass::Local, here));
    }
    for Member { name, folder } in &wanted.controllers {
        let reads = Grant {
            verbs: Names::Only(vec![Verb::Status, Verb::Events]),
            services: Names::All,
            nodes: Names::All,
        };
        let signer = key_of(folder, KeyName::Controller)?;
        keys.push((signer, principal(name), KeyClass::Controller, vec![reads]));
        for (job, grants) in &wanted.jobs {
            let path = job_key(folder, job);
            let signer = match load_key(&path) {
                Err(LoadKeyError::Missing { .. }) => make_key_at(&path)?,
                loaded => loaded?,
            };
            keys.push((signer, job.clone(), KeyClass::Ci, grants.clone()));
        }
    }
    let keys: Vec<TrustedKey> = keys
        .into_iter()
        .map(|(signer, name, class, grants)| TrustedKey {
            key: Digest(signer.public().to_bytes()),
            name,
            class,
            grants,
            until: None,
        })
        .chain(public)
        .collect();
    let made = !first.trust().exists();
    let before = if made { None } else { Some(load_trust(first)?.0) };
    if let Some(trust) = next(wanted, before, keys, roster) {
        // What nobody could follow is never signed.
        ring_of(&trust)
            .map_err(|error| MakeKeysError::Torn(format!("nothing was signed: {error}")))?;
        let root = key_of(first, KeyName::Root)?;
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
    // What a job may is what is wanted of it; the key of one that is wanted no more ends, and what it signed until then
    // still holds for nodes that were away.
    let wanted_at = wanted.now;
    let kept = |known: &TrustedKey| {
        let wanted = all.get(&known.key).copied();
        match (known.class, wanted) {
            (KeyClass::Ci, Some(wanted)) => wanted.clone(),
            (KeyClass::Ci, None) => {
                TrustedKey { until: known.until.or(Some(wanted_at)), ..known.clone() }
            }
            _ => known.clone(),
        }
    };
    let mut after: Vec<_> = before.keys.iter().map(kept).collect();
    after.extend(keys.iter().filter(|key| !were.contains(&key.key)).cloned());
    let is_a_nodes = |key: &&TrustedKey| matches!(key.class, KeyClass::Node | KeyClass::Local);
    let left = before.keys.iter().filter(is_a_nodes);
    let left = left.filter(|known| !all.contains_key(&known.key));
    let mut revoked = before.revoked.clone();
    // Who is taken in again is trusted again: root says so.
    let again = wanted.machines.values().flat_map(|it| [it.node, it.local]);
    let again = again.filter_map(|key| Some(PublicKey::from_bytes(&key.0).ok()?.kid()));
    let again: BTreeSet<_> = again.collect();
    revoked.retain(|kid| !again.contains(kid));
    revoked.extend(left.filter_map(|known| Some(PublicKey::from_bytes(&known.key.0).ok()?.kid())));
    revoked.sort_unstable();
    revoked.dedup();
    let version = before.version + 1;
    let is_new = after != before.keys || before.nodes != nodes || revoked != before.revoked;
    is_new.then_some(Trust { version, nodes, revoked, issued: wanted.now, keys: after, ..before })
}

fn not_a_key(name: &NodeId) -> MakeKeysError {
    MakeKeysError::Torn(format!("what is written of `{name}` holds no public key"))
}

/// Returns where a controller keeps the key that it holds for a job.
pub fn job_key(controller: &StateFolder, job: &Principal) -> PathBuf {
    controller.keys().join("jobs").join(format!("{job}.key"))
}

fn everything(nodes: Names<NodeId>) -> Vec<Grant> {
    vec![Grant { verbs: Names::All, services: Names::All, nodes }]
}

fn principal(name: &NodeId) -> Principal {
    name.as_str().parse().expect("names of nodes and principals are alike")
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
    use crate::wire::key::Signer;

    fn enrolment(temp: &tempfile::TempDir, nodes: &[&str]) -> Enrolment {
        let member = |name: &&str| Member {
            name: name.parse().unwrap(),
            folder: StateFolder::new(temp.path().join(name)),
        };
        Enrolment {
            fleet: "local".parse().unwrap(),
            operator: "ana".parse().unwrap(),
            nodes: nodes.iter().map(member).collect(),
            labels: BTreeMap::new(),
            controllers: vec![member(&"c1")],
            machines: BTreeMap::new(),
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
    fn a_job_may_what_is_wanted_of_it_and_its_key_ends_once_it_is_wanted_no_more() {
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
        let until = |keys: &FleetKeys| keys.ring.get(held.kid()).unwrap().1.until;
        let jobs = std::mem::take(&mut wanted.jobs);
        wanted.now = UnixMicros(7);
        let without = enrol(&wanted).unwrap();
        assert_eq!((until(&without), grants_of(&without).unwrap().len()), (Some(UnixMicros(7)), 2));
        wanted.now = UnixMicros(9);
        assert_eq!(until(&enrol(&wanted).unwrap()), Some(UnixMicros(7)), "it ended once");
        wanted.jobs = jobs;
        assert_eq!(until(&enrol(&wanted).unwrap()), None);
    }

    #[test]
    fn a_machine_that_is_admitted_is_enrolled_and_one_that_leaves_is_revoked() {
        let temp = tempfile::tempdir().unwrap();
        let mut wanted = enrolment(&temp, &["n1"]);
        enrol(&wanted).unwrap();
        let [node, local] = [4, 5].map(|seed| Signer::from_seed(&[seed; 32]));
        let [public, other] = [&node, &local].map(|key| Digest(key.public().to_bytes()));
        let machine = Machine { node: public, local: other, bus: "U".to_owned() };
        wanted.machines.insert("web-1".parse().unwrap(), machine.clone());
        let with = enrol(&wanted).unwrap();
        assert_eq!(with.trust.version, 2);
        assert_eq!(with.trust.nodes[1].kid, node.kid());
        let holder = with.ring.get(local.kid()).map(|(_, holder)| holder.grants.clone()).unwrap();
        assert_eq!(holder[0].nodes, Names::Only(vec!["web-1".parse().unwrap()]));
        wanted.machines.clear();
        let without = enrol(&wanted).unwrap();
        assert_eq!((without.trust.version, without.trust.nodes.len()), (3, 1));
        assert!(without.ring.get(node.kid()).is_none() && without.ring.get(local.kid()).is_none());
        assert_eq!(enrol(&wanted).unwrap().trust.version, 3);
        wanted.machines.insert("web-1".parse().unwrap(), machine.clone());
        let again = enrol(&wanted).unwrap();
        assert!(again.ring.get(node.kid()).is_some() && again.trust.version == 4);
        // Two entries of one key would be a document that nobody can read.
        let twice = Digest(Signer::from_seed(&[6; 32]).public().to_bytes());
        wanted
            .machines
            .insert("web-2".parse().unwrap(), Machine { node: twice, local: twice, ..machine });
        assert!(enrol(&wanted).is_err());
        assert_eq!(load_trust(&wanted.nodes[0].folder).unwrap().0, again.trust);
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
