//! The folder of a run: `${runtime}`, with its credentials. Made before the start, removed after the end.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::account::Identity;
use super::acl::{self, Access};
use super::{Degradation, LaunchFault, is_own};
use crate::domain::spec::{ReloadBy, Spec};
use crate::domain::template::{Piece, Template};
use crate::ipc::keeper::RunName;

const CREDENTIALS: &str = "credentials";

/// The folder of one run; it need not exist.
#[derive(Debug)]
pub(super) struct RunFolder {
    above: PathBuf,
    path: PathBuf,
}

/// Says whether a run of this service has a folder. Most have none, and a start costs less.
pub(super) fn is_needed(spec: &Spec) -> bool {
    let names_it = |template: &Template| {
        let pieces = template.pieces().unwrap_or_default();
        pieces.iter().any(|(_, piece)| *piece == Piece::Name("runtime"))
    };
    let reload = match &spec.reload.by {
        ReloadBy::Exec(exec) => exec.as_slice(),
        ReloadBy::None | ReloadBy::Signal(_) | ReloadBy::Notify(_) => &[],
    };
    let actions = spec.action.values().flat_map(|action| &action.exec);
    !spec.credential.is_empty()
        || spec.socket.values().any(|socket| names_it(&socket.listen))
        || spec.exec.iter().any(names_it)
        || names_it(&spec.working_dir)
        || spec.env.values().any(names_it)
        || spec.env_files.iter().any(names_it)
        || spec.stop.pre.iter().flatten().any(names_it)
        || reload.iter().any(names_it)
        || actions.into_iter().any(names_it)
}

impl RunFolder {
    pub(super) fn new(above: &Path, run: &RunName) -> Self {
        Self { above: above.to_owned(), path: above.join(run.as_str()) }
    }

    /// Returns where the credentials are.
    pub(super) fn credentials(&self) -> PathBuf {
        self.path.join(CREDENTIALS)
    }

    /// Makes the folder, empty, for the account alone.
    pub(super) fn make(
        &self,
        identity: &Identity,
        degraded: &mut Vec<Degradation>,
    ) -> Result<(), LaunchFault> {
        let made = make_private(&self.path).or_else(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                DirBuilder::new().recursive(true).mode(0o711).create(&self.above)?;
            } else if error.kind() == io::ErrorKind::AlreadyExists {
                // Left over from a start that never came to be.
                fs::remove_dir_all(&self.path)?;
            } else {
                return Err(error);
            }
            make_private(&self.path)
        });
        made.map_err(|error| LaunchFault::io("runtime", "make", &self.path, &error))?;
        if is_own(identity) {
            return Ok(());
        }
        if let Some(closed) = closed_to_others(&self.above) {
            let why = format!("`{}` is closed to the service's account", closed.display());
            degraded.push(Degradation { key: "runtime", why });
        }
        if let Err(error) = hand_over(&self.path, identity, Access::All) {
            let path = self.path.display();
            let why = format!("`{path}` cannot be handed to the service's account: {error}");
            degraded.push(Degradation { key: "runtime", why });
        }
        Ok(())
    }

    /// Copies one credential into the folder, readable to the account alone.
    ///
    /// A credential that the account could not read is a fault, not a degradation.
    pub(super) fn add_credential(
        &self,
        name: &str,
        secret: &[u8],
        identity: &Identity,
    ) -> Result<(), LaunchFault> {
        let folder = self.credentials();
        let path = folder.join(name);
        let fault = |what, error: &io::Error| LaunchFault::io("credential", what, &path, error);
        // A name is checked by `config`; here it must only not leave the folder.
        if name.contains('/') || name.starts_with('.') {
            return Err(fault("make", &io::ErrorKind::InvalidFilename.into()));
        }
        match make_private(&folder) {
            Ok(()) if !is_own(identity) => {
                hand_over(&folder, identity, Access::All)
                    .map_err(|error| fault("hand over the folder of", &error))?;
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fault("make the folder of", &error));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o400).open(&path);
        file.and_then(|mut file| file.write_all(secret)).map_err(|error| fault("write", &error))?;
        match is_own(identity) {
            true => Ok(()),
            false => {
                hand_over(&path, identity, Access::Read).map_err(|error| fault("hand over", &error))
            }
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Gives a path to the account: away when we are root, else by naming it in the path's list.
fn hand_over(path: &Path, identity: &Identity, access: Access) -> io::Result<()> {
    let Some(account) = &identity.account else { return Ok(()) };
    match identity.agent_uid {
        0 => chown(path, Some(account.uid), Some(account.gid)),
        _ => acl::share(path, account.uid, access),
    }
}

/// Returns the first folder on the way to `path` that not everybody may pass.
fn closed_to_others(path: &Path) -> Option<&Path> {
    let open = |folder: &Path| {
        fs::metadata(folder).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
    };
    path.ancestors().collect::<Vec<_>>().into_iter().rev().find(|folder| !open(folder))
}

/// Removes the folder of a run; it is no error when it had none.
pub(super) fn remove(above: &Path, run: &RunName) -> io::Result<()> {
    remove_all(&above.join(run.as_str()))
}

/// Removes the folders of all runs but those in `live`.
pub(super) fn remove_but(above: &Path, live: &BTreeSet<RunName>) -> io::Result<()> {
    let entries = match fs::read_dir(above) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        // What is not named as a run is not ours.
        let run: Option<RunName> = name.to_str().and_then(|name| name.parse().ok());
        if let Some(run) = run.filter(|run| !live.contains(run)) {
            remove(above, &run)?;
        }
    }
    Ok(())
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Without root, what the service made inside may be closed to us; ours is opened again.
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    }
}
