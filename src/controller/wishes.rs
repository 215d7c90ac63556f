//! The signed wishes behind rollouts, as they came: each order carries one whole.
//!
//! A spec may hold values of the environment, so no log has them. They lie beside the logs, one file each, on disk before
//! an event names them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::config;
use crate::domain::id::IntentId;
use crate::domain::intent::Action;
use crate::domain::policy::Kind;
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::rollout::{Placement, Plan, Wished};
use crate::domain::selector::Selector;
use crate::head::folder::{StateFolder, write_whole};
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::payload::{Audience, Intent};

/// Wishes that are kept, those of open rollouts among them.
pub(super) const WISHES_MAX: usize = 256;

/// The folder of the wishes.
#[derive(Debug)]
pub(super) struct Wishes {
    folder: PathBuf,
}

impl Wishes {
    pub(super) fn of(folder: &StateFolder) -> io::Result<Self> {
        let folder = folder.root().join("wishes");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, intent: IntentId) -> PathBuf {
        self.folder.join(format!("{intent}.intent"))
    }

    /// Keeps a wish. Of one that became a rollout the first bytes are the ones that count; one that was refused may be
    /// signed anew.
    pub(super) fn keep(&self, intent: IntentId, bytes: &[u8], is_rollout: bool) -> io::Result<()> {
        match self.read(intent).is_some_and(|kept| is_rollout || kept == bytes) {
            true => Ok(()),
            false => write_whole(&self.path(intent), bytes, 0o600),
        }
    }

    pub(super) fn read(&self, intent: IntentId) -> Option<Vec<u8>> {
        fs::read(self.path(intent)).ok()
    }

    /// Returns which nodes and keys a wish is about, where it is here and sets some.
    pub(super) fn configured(&self, intent: IntentId) -> Option<(Selector, BTreeSet<String>)> {
        self.read(intent).and_then(|wish| configured_in(&wish))
    }

    /// Returns where a wish wants its service, where it is here and says so.
    pub(super) fn wished(&self, intent: IntentId) -> Option<Wished> {
        self.read(intent).and_then(|wish| wished_in(&wish))
    }

    /// Removes the oldest of those that nobody needs, as far as there are too many.
    pub(super) fn prune(&self, is_needed: impl Fn(&IntentId) -> bool) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".intent"));
            let Some(id) = id.and_then(|id| id.parse::<IntentId>().ok()) else { continue };
            found.push((entry.metadata()?.modified()?, id));
        }
        let excess = found.len().saturating_sub(WISHES_MAX);
        found.sort_by_key(|(at, _)| *at);
        found.retain(|(_, id)| !is_needed(id));
        for (_, id) in found.into_iter().take(excess) {
            fs::remove_file(self.path(id))?;
        }
        Ok(())
    }
}

/// Returns a wish that was verified before.
fn intent_in(wish: &[u8]) -> Option<Intent> {
    envelope::read_kept(wish, Kind::Intent).ok()
}

/// Returns which nodes a wish means.
fn selection_of(intent: &Intent) -> Option<Selector> {
    match &intent.audience {
        Audience::Select { selector, .. } => selector.parse().ok(),
        Audience::Nodes(nodes) => Some(Selector::nodes(nodes)),
        Audience::All => None,
    }
}

/// Returns which nodes a wish that was verified before is about, and the keys that it sets or sets no more.
fn configured_in(wish: &[u8]) -> Option<(Selector, BTreeSet<String>)> {
    let intent = intent_in(wish)?;
    let Action::Configure { set, unset, .. } = &intent.action else { return None };
    let keys = set.keys().chain(unset).cloned().collect();
    Some((selection_of(&intent)?, keys))
}

/// Returns where a wish that was verified before wants its service.
fn wished_in(wish: &[u8]) -> Option<Wished> {
    let intent = intent_in(wish)?;
    let select = selection_of(&intent)?;
    let placement = match manifest_in(wish) {
        Some((release, manifest)) => {
            config::rollouts_of(config::release_layer(release, manifest)).ok()?.placement
        }
        None => Placement::default(),
    };
    let generation = intent.action.generation()?;
    Some(Wished {
        intent: intent.id,
        generation,
        release: intent.action.release(),
        select,
        placement,
    })
}

/// Says whether a plan was made of this wish. One with the same id that was refused has another number.
pub(super) fn is_behind(wish: &[u8], plan: &Plan) -> bool {
    let Some(intent) = intent_in(wish) else { return false };
    let release = match &intent.action {
        Action::Deploy { release, .. } => ReleaseId::of(release),
        Action::Remove { .. } => ReleaseId::NOTHING,
        Action::Configure { .. } => ReleaseId::of(&intent.id.0),
        _ => return false,
    };
    let generation = intent.action.generation();
    (intent.id, generation, release) == (plan.intent, Some(plan.generation), plan.release)
}

/// Returns the manifest in a wish that was verified before.
pub(super) fn manifest_in(wish: &[u8]) -> Option<(ReleaseId, Manifest)> {
    let intent = intent_in(wish)?;
    let Action::Deploy { release, .. } = &intent.action else { return None };
    Some((ReleaseId::of(release), codec::decode(release).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_a_rollout_stay_and_those_of_a_wish_that_was_refused_do_not() {
        let temp = tempfile::tempdir().unwrap();
        let wishes = Wishes::of(&StateFolder::new(temp.path())).unwrap();
        let intent = IntentId([7; 16]);
        for (bytes, is_rollout, kept) in [
            (b"refused", false, b"refused"),
            (b"again  ", false, b"again  "),
            (b"another", true, b"again  "),
        ] {
            wishes.keep(intent, bytes, is_rollout).unwrap();
            assert_eq!(wishes.read(intent).unwrap(), kept);
        }
    }
}
