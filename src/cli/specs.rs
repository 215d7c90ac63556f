//! The spec files of this machine: where they are, and what is wrong with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::context::Context;
use super::error::{CliError, Instead};
use super::out::error_width;
use crate::agent::overrides::written_down;
use crate::agent::release::Releases;
use crate::agent::setup::SpecSources;
use crate::config::{self, Input, Loaded, Mistake, Options, Roots};
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::domain::signal::Signal;

/// The name of a project's file.
pub const PROJECT_FILE: &str = "smgr.toml";

/// Returns where services are described, for a node that is begun in this folder.
pub fn sources(context: &Context, project: Option<PathBuf>) -> SpecSources {
    let beside = |name: &str| context.services.parent().map(|folder| folder.join(name));
    SpecSources {
        package: context.packages.clone(),
        vendor: Some(context.folder.internal_services()),
        host: Some(context.services.clone()),
        group: beside("groups.d"),
        node: beside("override.d"),
        project,
    }
}

/// Returns the project's file in the current folder, if there is one, as an absolute path.
pub fn project_here() -> Option<PathBuf> {
    let path = std::path::absolute(PROJECT_FILE).ok()?;
    path.is_file().then_some(path)
}

/// Returns what besides the files decides what they mean.
pub fn options(context: &Context, service_logs: &Path) -> Options {
    Options {
        log_root: service_logs.display().to_string(),
        user_required: context.is_root,
        releases: releases(context),
    }
}

/// Returns the specs of the releases in force and what signed wishes set, as far as this user may read them.
fn releases(context: &Context) -> Vec<Input> {
    let releases = Releases::new(context.folder.releases()).in_force();
    let releases =
        releases.into_iter().map(|(release, manifest)| config::release_layer(release, manifest));
    releases.chain(written_down(&context.folder.specs())).collect()
}

/// Loads every service, or says all that is wrong; `outcome` is what did not happen because of it.
///
/// # Errors
/// All mistakes in all files, as one error.
pub fn load(
    context: &Context,
    sources: &SpecSources,
    service_logs: &Path,
    outcome: &str,
) -> Result<Loaded, CliError> {
    load_with(context, sources, service_logs, outcome, None)
}

/// Loads every service as if `edited` stood in its place already, or says all that is wrong.
///
/// # Errors
/// All mistakes in all files, as one error.
pub fn load_with(
    context: &Context,
    sources: &SpecSources,
    service_logs: &Path,
    outcome: &str,
    edited: Option<Input>,
) -> Result<Loaded, CliError> {
    let uid = rustix::process::geteuid().as_raw();
    config::load_with(&roots(sources), &options(context, service_logs), Some(uid), edited)
        .map_err(|mistakes| mistaken(&mistakes, outcome))
}

/// Returns where files are looked for, with the project's path as people see it.
pub fn roots(sources: &SpecSources) -> Roots {
    Roots { project: sources.project.as_deref().map(shown), ..sources.roots() }
}

/// Returns where the services of this machine's node are described, or would be by an `smgr up` in this folder.
///
/// # Errors
/// When the set-up is there and cannot be used.
pub fn sources_here(context: &Context) -> Result<SpecSources, CliError> {
    Ok(match context.setup()? {
        Some(setup) => setup.specs,
        None => sources(context, project_here()),
    })
}

/// Returns the signals that stop services, where the files name another than TERM.
pub fn stop_signals(context: &Context) -> BTreeMap<ServiceId, Signal> {
    let setup = context.setup().ok().flatten();
    let loaded = setup.and_then(|it| load(context, &it.specs, &it.service_logs, "nothing").ok());
    let services = loaded.map(|loaded| loaded.services).unwrap_or_default();
    services.into_iter().map(|(service, it)| (service, it.spec.stop.signal)).collect()
}

/// Returns the project's path as people see it: relative where it is the current folder's.
fn shown(project: &Path) -> PathBuf {
    match project_here().as_deref() == Some(project) {
        true => Path::new(".").join(PROJECT_FILE),
        false => project.to_owned(),
    }
}

/// Turns mistakes into the one error of the command: the screen for people, the first one's code for programs.
pub fn mistaken(mistakes: &[Mistake], outcome: &str) -> CliError {
    let first = mistakes.first();
    let code = first.map_or(Code::INTERNAL, |mistake| mistake.code);
    let what = first.map_or_else(|| outcome.to_owned(), |mistake| mistake.what.clone());
    let mut error = CliError::new(code, what);
    error.place = first.map(Mistake::place);
    error.hint = first.and_then(|mistake| mistake.hint.clone());
    error.instead = Some(Box::new(Instead {
        screen: config::render(mistakes, outcome, error_width().map(usize::from)),
        document: config::json(mistakes),
    }));
    error
}
