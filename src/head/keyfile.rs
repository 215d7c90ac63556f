//! The key files of a node and the trust envelope made from them.
//!
//! A key file is a 32-byte seed, `keys/NAME.key`, for its owner alone; `keys/NAME.pub` is the public half as a line of
//! hex, for people. [`make_keys_and_trust`] is the whole ceremony for one machine.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::account::account_ids;
use super::folder::{StateFolder, write_new, write_whole};
use super::trust::{ReadTrustError, read_trust};
use crate::domain::id::{Digest, FleetId, NodeId, Principal};
use crate::domain::policy::{Grant, KeyClass, Kind, Names};
use crate::domain::time::UnixMicros;
use crate::wire::codec;
use crate::wire::envelope::{TRUST_BYTES_MAX, seal};
use crate::wire::key::{Keyring, PublicKey, Signer};
use crate::wire::payload::{PAYLOAD_VERSION, Trust, TrustedKey};

/// The keys that one machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// Signs trust documents. May be taken away from the machine afterwards.
    Root,
    /// The person who runs smgr here.
    Operator,
    /// The node: its events and answers.
    Node,
    /// Local root: every wish, on this node alone, for ever.
    Local,
    /// A controller: its events, answers and orders. Only in the folder of one.
    Controller,
}

impl KeyName {
    /// Those of one machine.
    const ALL: [Self; 4] = [Self::Root, Self::Operator, Self::Node, Self::Local];

    /// Returns the stem of its files.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Operator => "operator",
            Self::Node => "node",
            Self::Local => "local",
            Self::Controller => "controller",
        }
    }

    /// Returns where its seed lies.
    pub fn path(self, folder: &StateFolder) -> PathBuf {
        folder.keys().join(format!("{}.key", self.stem()))
    }
}

/// Says why a key file is not used. A key that others can read or exchange is not a key.
#[derive(Debug, thiserror::Error)]
pub enum LoadKeyError {
    /// There is none.
    #[error("there is no key at `{path}`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It cannot be opened; a symbolic link is not followed.
    #[error("failed to open the key at `{path}`")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is open to others, or not a plain file of 32 bytes.
    #[error("the key at `{path}` {why}")]
    Unsafe {
        /// Where.
        path: PathBuf,
        /// Which rule it breaks.
        why: &'static str,
    },
}

/// Loads a private key.
///
/// # Errors
/// When it is missing, or is not a regular file of 32 bytes that belongs to this user, has one name and is closed to
/// everybody else.
pub fn load_key(path: &Path) -> Result<Signer, LoadKeyError> {
    let broken = |why| Err(LoadKeyError::Unsafe { path: path.to_owned(), why });
    let open = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LoadKeyError::Missing { path: path.to_owned() },
        _ => LoadKeyError::Open { path: path.to_owned(), source },
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| open(errno.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| open(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return broken("is not a regular file");
    }
    let own = rustix::process::geteuid();
    // Root reads the key of its own agent.
    let is_agents = || account_ids("smgr").is_some_and(|(uid, _)| uid == stat.st_uid);
    if stat.st_uid != own.as_raw() && !(own.is_root() && is_agents()) {
        return broken("belongs to another user");
    }
    if stat.st_mode & 0o077 != 0 {
        return broken("can be read or written by others: chmod 600");
    }
    if stat.st_nlink != 1 {
        return broken("has more than one name");
    }
    let mut seed = [0; 32];
    let mut file = File::from(file);
    let whole = file.read_exact(&mut seed).and_then(|()| file.read(&mut [0; 1]));
    match whole {
        Ok(0) => Ok(Signer::from_seed(&seed)),
        Ok(_) => broken("has more than 32 bytes"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => broken("is cut short"),
        Err(error) => Err(open(error)),
    }
}

/// Says why a machine has no usable keys and trust.
#[derive(Debug, thiserror::Error)]
pub enum MakeKeysError {
    /// The disk or the permissions refuse.
    #[error("failed to write `{path}`")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Load(#[from] LoadKeyError),
    /// The trust envelope cannot be used.
    #[error("`{path}` cannot be used")]
    Trust {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ReadTrustError,
    },
    /// The files of the folder do not belong together.
    #[error("{0}")]
    Torn(String),
}

/// What a machine signs and verifies with.
#[derive(Debug)]
pub struct Keys {
    /// Signs events and answers.
    pub node: Signer,
    /// The trust document that is in force here.
    pub trust: Trust,
    /// Its keys.
    pub ring: Keyring,
    /// Whether this call made the trust document.
    pub made: bool,
}

/// Whose machine it is, for the trust document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The fleet.
    pub fleet: FleetId,
    /// The node.
    pub node: NodeId,
    /// The person whose key `operator.key` is.
    pub operator: Principal,
    /// The time that the document bears.
    pub now: UnixMicros,
}

/// Makes the keys and the trust envelope of a state folder, or takes those that are there.
///
/// Each file appears whole or not at all, in the order keys, pin, trust: killed anywhere in between, the next call goes
/// on where this one ended. With a trust envelope in place nothing is made: it says which keys count.
///
/// # Errors
/// When the disk refuses, a key is open to others, or the files do not belong together.
pub fn make_keys_and_trust(folder: &StateFolder, owner: &Owner) -> Result<Keys, MakeKeysError> {
    folder.make().map_err(|source| MakeKeysError::Write { path: folder.root().into(), source })?;
    let made = !folder.trust().exists();
    if made {
        make(folder, owner)?;
    }
    let (trust, ring) = load_trust(folder)?;
    let node = load_key(&KeyName::Node.path(folder))?;
    match ring.get(node.kid()) {
        Some((_, holder)) if holder.class == KeyClass::Node => Ok(Keys { node, trust, ring, made }),
        Some(_) | None => Err(MakeKeysError::Torn(format!(
            "the key at `{}` is not the one that `{}` trusts",
            KeyName::Node.path(folder).display(),
            folder.trust().display()
        ))),
    }
}

/// Reads the trust envelope of a state folder and verifies it against the pinned root key.
///
/// # Errors
/// When either is missing or they do not belong together.
pub fn load_trust(folder: &StateFolder) -> Result<(Trust, Keyring), MakeKeysError> {
    load_named_trust(folder).map(|(trust, ring, _)| (trust, ring))
}

/// The same, with the SHA-256 of the signed bytes.
///
/// # Errors
/// As for [`load_trust`].
pub fn load_named_trust(folder: &StateFolder) -> Result<(Trust, Keyring, Digest), MakeKeysError> {
    let placed = load_trust_at(folder, folder.trust())?;
    // What came by the bus counts as soon as it is the later one; whatever else lies there is not missed.
    match load_trust_at(folder, folder.received_trust()) {
        Ok(received) if received.0.version > placed.0.version => Ok(received),
        Ok(_) | Err(_) => Ok(placed),
    }
}

fn load_trust_at(
    folder: &StateFolder,
    path: PathBuf,
) -> Result<(Trust, Keyring, Digest), MakeKeysError> {
    let bytes = read_capped(&path, TRUST_BYTES_MAX)
        .map_err(|source| LoadKeyError::Open { path: path.clone(), source })?;
    let root = read_root(folder)?.ok_or_else(|| {
        let (trust, pin) = (folder.trust(), folder.root_pin());
        MakeKeysError::Torn(format!(
            "`{}` is there but `{}` is not, so nothing says which root key signed it",
            trust.display(),
            pin.display()
        ))
    })?;
    read_trust(&bytes, root).map_err(|source| MakeKeysError::Trust { path, source })
}

fn make(folder: &StateFolder, owner: &Owner) -> Result<(), MakeKeysError> {
    let pinned = read_root(folder)?;
    let mut signers = Vec::with_capacity(KeyName::ALL.len());
    for name in KeyName::ALL {
        let signer = match (load_key(&name.path(folder)), name, &pinned) {
            (Err(LoadKeyError::Missing { path }), KeyName::Root, Some(_)) => {
                return Err(MakeKeysError::Torn(format!(
                    "the root key `{}` is gone and there is no trust envelope: put back a backup of the folder",
                    path.display()
                )));
            }
            (Err(LoadKeyError::Missing { .. }), ..) => make_key(folder, name)?,
            (loaded, ..) => loaded?,
        };
        signers.push(signer);
    }
    let [root, operator, node, local] = signers.try_into().expect("one signer for each name");
    match pinned {
        Some(pinned) if pinned != root.public() => {
            return Err(MakeKeysError::Torn(format!(
                "`{}` is not the public half of `{}`",
                folder.root_pin().display(),
                KeyName::Root.path(folder).display()
            )));
        }
        Some(_) => {}
        None => write(&folder.root_pin(), hex_line(root.public()).as_bytes(), 0o644)?,
    }
    let trust = first_trust(owner, &operator, &node, &local);
    let sealed = seal(Kind::Trust, &codec::encode(&trust), &root);
    write_new(&folder.trust(), &sealed, 0o644)
        .map(drop)
        .map_err(|source| MakeKeysError::Write { path: folder.trust(), source })
}

/// Takes a key of a folder, or makes it where there is none.
///
/// # Errors
/// When it is open to others or cannot be made, or is a root key that was taken away: that is asked for, and not made anew.
pub fn key_of(folder: &StateFolder, name: KeyName) -> Result<Signer, MakeKeysError> {
    match load_key(&name.path(folder)) {
        Err(LoadKeyError::Missing { .. })
            if name != KeyName::Root || !folder.root_pin().exists() =>
        {
            make_key(folder, name)
        }
        loaded => Ok(loaded?),
    }
}

fn make_key(folder: &StateFolder, name: KeyName) -> Result<Signer, MakeKeysError> {
    make_key_at(&name.path(folder))
}

pub(super) fn make_key_at(path: &Path) -> Result<Signer, MakeKeysError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| MakeKeysError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| failed(error.into()))?;
    let written = write_new(path, &seed, 0o600);
    seed.fill(0);
    written.map_err(failed)?;
    // Read back: another `up` may have been first, and its key is the one that stays.
    let signer = load_key(path)?;
    write(&path.with_extension("pub"), hex_line(signer.public()).as_bytes(), 0o644)?;
    Ok(signer)
}

fn first_trust(owner: &Owner, operator: &Signer, node: &Signer, local: &Signer) -> Trust {
    let everything_here = Grant {
        verbs: Names::All,
        services: Names::All,
        nodes: Names::Only(vec![owner.node.clone()]),
    };
    let key = |signer: &Signer, name: Principal, class, grants| TrustedKey {
        key: Digest(signer.public().to_bytes()),
        name,
        class,
        grants,
        until: None,
    };
    let node_name = owner.node.as_str().parse().expect("names of nodes and principals are alike");
    let local_name = "root".parse().expect("a constant that is a name");
    Trust {
        v: PAYLOAD_VERSION,
        version: 1,
        fleet: owner.fleet.clone(),
        issued: owner.now,
        keys: vec![
            key(operator, owner.operator.clone(), KeyClass::Human, vec![everything_here.clone()]),
            key(node, node_name, KeyClass::Node, vec![]),
            key(local, local_name, KeyClass::Local, vec![everything_here]),
        ],
        revoked: vec![],
        nodes: vec![],
    }
}

/// Reads the public half of the root key that a state folder is pinned to; `None` when it has none.
///
/// # Errors
/// When it cannot be read, or is no key.
pub fn read_root(folder: &StateFolder) -> Result<Option<PublicKey>, MakeKeysError> {
    let path = folder.root_pin();
    let torn = || MakeKeysError::Torn(format!("`{}` does not hold a public key", path.display()));
    let bytes = match read_capped(&path, 256) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadKeyError::Open { path, source }.into()),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| torn())?;
    let key: Digest = text.trim().parse().map_err(|_| torn())?;
    PublicKey::from_bytes(&key.0).map(Some).map_err(|_| torn())
}

pub(super) fn read_capped(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns a public key as the line of hex that a pin is.
pub fn hex_line(key: PublicKey) -> String {
    format!("{}\n", Digest(key.to_bytes()))
}

pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), MakeKeysError> {
    write_whole(path, bytes, mode)
        .map_err(|source| MakeKeysError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
