//! What specs name and this machine does not have: programs, files of the environment, users.
//!
//! All of it may be meant for another machine, or for later, so it is worth a warning and no more.

use std::path::Path;

use super::context::Context;
use super::nats;
use crate::agent::launch;
use crate::config::{Loaded, LoadedService, Mistake};
use crate::domain::code::Code;
use crate::domain::template::{Piece, Template};

/// Returns what would keep the services from starting here, as it is now.
pub fn missing(context: &Context, loaded: &Loaded) -> Vec<Mistake> {
    loaded.services.values().flat_map(|service| missing_of(context, service)).collect()
}

fn missing_of(context: &Context, service: &LoadedService) -> Vec<Mistake> {
    let spec = &service.spec;
    let folder = plain(&spec.working_dir);
    let program = spec.exec.first().and_then(plain).filter(|program| {
        let is_there = match (program.contains('/'), &folder) {
            (true, Some(folder)) => Path::new(folder).join(program).is_file(),
            // Where it is looked for is not known before it starts.
            (true, None) => true,
            (false, _) => nats::in_path(program).is_some(),
        };
        !is_there
    });
    let program = program.map(|it| of(service, "exec", format!("there is no program `{it}`")));
    let files = spec.env_files.iter().filter_map(plain).filter(|file| !Path::new(file).is_file());
    let files = files.map(|it| of(service, "env_files", format!("there is no file `{it}`")));
    let user = launch::account_fault(spec, context.is_root).map(|why| of(service, "user", why));
    program.into_iter().chain(files).chain(user).collect()
}

/// Returns the text where it says the same on every start.
fn plain(template: &Template) -> Option<String> {
    let pieces = template.pieces().ok()?;
    let text = |(_, piece)| match piece {
        Piece::Text(text) => Some(text),
        Piece::Name(_) => None,
    };
    pieces.into_iter().map(text).collect()
}

fn of(service: &LoadedService, key: &str, what: String) -> Mistake {
    let origin = service.effective.get(key).map_or(&service.origin, |it| &it.origin);
    Mistake::new(Code::NOT_HERE, origin.to_string(), None, what)
}
