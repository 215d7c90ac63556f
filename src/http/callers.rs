//! Who asks: the bearer token of a request, and the key that it stands for.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use tracing::warn;

use super::problem::Problem;
use crate::controller::Access;
use crate::controller::tokens::Tokens;
use crate::domain::code::Code;
use crate::domain::id::{Kid, NodeId, Principal, ServiceId};
use crate::domain::intent::Verb;
use crate::domain::policy::{Holder, KeyClass, Request, allowed_by, allowed_somewhere};
use crate::head::clock;
use crate::head::enrol::job_key;
use crate::head::folder::StateFolder;
use crate::head::keyfile::load_key;
use crate::wire::key::Signer;

/// The keys that this controller holds for jobs, and the tokens that stand for them.
#[derive(Debug)]
pub(super) struct Callers {
    folder: StateFolder,
    controller: NodeId,
    held: BTreeMap<Principal, (Signer, Holder)>,
    tokens: Mutex<(Option<Version>, Tokens)>,
}

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Version {
    fn of(about: &Metadata) -> Self {
        let changed = (about.ctime(), about.ctime_nsec());
        Self { inode: about.ino(), bytes: about.size(), changed }
    }
}

/// One who showed a token.
#[derive(Debug)]
pub(super) struct Caller<'c> {
    /// Which token, as histories name it.
    pub(super) token: String,
    /// The key that it stands for.
    pub(super) signer: &'c Signer,
    /// Whose key that is, and what it is granted.
    pub(super) holder: &'c Holder,
    controller: &'c NodeId,
}

impl Callers {
    /// Loads the keys of the jobs that the trust document knows. A key that cannot be used is told and left out.
    pub(super) fn load(access: &Access) -> Self {
        let folder = access.folder().clone();
        let jobs = access.ring().iter().filter(|(key, holder)| {
            holder.class == KeyClass::Ci && !access.revoked().contains(&key.kid())
        });
        let mut held = BTreeMap::new();
        for (key, holder) in jobs {
            let path = job_key(&folder, &holder.name);
            match load_key(&path) {
                // Another controller holds another key for the same job.
                Ok(signer) if signer.kid() == key.kid() => {
                    held.insert(holder.name.clone(), (signer, holder.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(job = %holder.name, %error, "its tokens stand for nothing here");
                }
            }
        }
        let (controller, tokens) = (access.controller().clone(), Mutex::default());
        Self { folder, controller, held, tokens }
    }

    /// Finds who asks.
    ///
    /// # Errors
    /// When there is no token, or it stands for no key that is held here.
    pub(super) fn find(&self, headers: &HeaderMap) -> Result<Caller<'_>, Problem> {
        let text = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, text)| text.trim());
        let Some(text) = text else {
            return Err(Problem::new(Code::BAD_TOKEN, "a bearer token is needed")
                .hint("`Authorization: Bearer TOKEN`; make one with: smgr token create --as JOB"));
        };
        let (token, principal) = self
            .token(text)
            .ok_or_else(|| Problem::new(Code::BAD_TOKEN, "there is no such token here"))?;
        let now = clock::now().at;
        let in_force = |it: &&(Signer, Holder)| it.1.until.is_none_or(|until| now <= until);
        let (signer, holder) = self.held.get(&principal).filter(in_force).ok_or_else(|| {
            let what = format!("this controller holds no trusted key of `{principal}`");
            Problem::new(Code::BAD_TOKEN, what)
        })?;
        Ok(Caller { token, signer, holder, controller: &self.controller })
    }

    /// Returns name and principal of a token; the file is read again when it changed.
    fn token(&self, text: &str) -> Option<(String, Principal)> {
        let mut known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let version = std::fs::metadata(Tokens::path(&self.folder)).ok();
        let version = version.as_ref().map(Version::of);
        if version != known.0 {
            match Tokens::read(&self.folder) {
                Ok(tokens) => *known = (version, tokens),
                // Whom the old file let in may be one whom the new one does not.
                Err(error) => {
                    warn!(%error, "the tokens cannot be read: nobody is let in");
                    *known = (None, Tokens::default());
                }
            }
        }
        known.1.find(text).map(|token| (token.name().to_owned(), token.principal.clone()))
    }
}

impl Caller<'_> {
    /// Returns the id of the key.
    pub(super) fn kid(&self) -> Kid {
        self.signer.kid()
    }

    /// Checks that the key may read something of the fleet.
    ///
    /// # Errors
    /// When no grant says so.
    pub(super) fn may_read(&self, verb: Verb) -> Result<(), Problem> {
        self.may(verb, None, self.controller)
    }

    /// Checks that the key may do something to a service, or to any where none is named, on some node: whoever may not is
    /// told nothing, and nobody waits or asks for him.
    ///
    /// # Errors
    /// When no grant says so.
    pub(super) fn may_somewhere(
        &self,
        verb: Verb,
        service: Option<&ServiceId>,
    ) -> Result<(), Problem> {
        match allowed_somewhere(&self.holder.grants, verb, service) {
            true => Ok(()),
            false => {
                let of = service.map(|service| format!(" `{service}`")).unwrap_or_default();
                let what = format!("`{}` may not {verb}{of} on any node", self.holder.name);
                Err(Problem::new(Code::NOT_GRANTED, what))
            }
        }
    }

    /// Checks a grant of the key.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn may(
        &self,
        verb: Verb,
        service: Option<&ServiceId>,
        node: &NodeId,
    ) -> Result<(), Problem> {
        match allowed_by(&self.holder.grants, Request { verb, service, node }) {
            Some(_) => Ok(()),
            None => {
                let of = service.map(|service| format!(" `{service}`")).unwrap_or_default();
                let what = format!("`{}` may not {verb}{of} on `{node}`", self.holder.name);
                Err(Problem::new(Code::NOT_GRANTED, what))
            }
        }
    }
}
