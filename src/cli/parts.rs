//! `smgr agent`: the launcher, and the three parts that it leads to. Each is a process of this same binary.

use std::ffi::OsString;

use super::args::{PartArgs, PartName};
use super::context::{Context, not_up, short};
use super::error::CliError;
use crate::agent::{self, AgentOptions};
use crate::controller::{self, ControllerOptions};
use crate::domain::code::{Code, ExitCode};
use crate::http;
use crate::keeper::{self, KeeperOptions, LaunchOptions};
use crate::uplink::{self, UplinkOptions};

/// Runs the launcher or one part, until it ends.
///
/// # Errors
/// When the part cannot begin or go on; whoever started it starts it again.
pub fn run(context: &Context, args: &PartArgs) -> Result<ExitCode, CliError> {
    let state = context.folder.root().to_owned();
    let failed = |what: &str, error: &dyn std::error::Error| {
        CliError::caused(Code::IO, what, error).at(short(context.folder.root()))
    };
    match args.part {
        None => {
            // Without a set-up no agent could begin, and the keeper would try for ever.
            if !args.alone && context.setup()?.is_none() {
                return Err(not_up(context));
            }
            let keeper = command(context, args, PartName::Keeper)?;
            let ended = keeper::launch(&LaunchOptions { state, keeper });
            ended.map_err(|error| failed("the launcher cannot go on", &error))?;
        }
        Some(PartName::Keeper) => {
            let setup = if args.alone { None } else { context.setup()? };
            let part = |name| command(context, args, name);
            let agent = setup.is_some().then(|| part(PartName::Agent)).transpose()?;
            let has_bus = setup.is_some_and(|setup| setup.bus.is_some());
            let uplink = has_bus.then(|| part(PartName::Uplink)).transpose()?;
            let may_use_cgroups = !args.no_cgroups;
            let ended = keeper::run(KeeperOptions { state, agent, uplink, may_use_cgroups });
            ended.map_err(|error| failed("the keeper cannot go on", &error))?;
        }
        Some(PartName::Agent) => {
            let ended = agent::run(AgentOptions { state });
            ended.map_err(|error| failed("the agent cannot go on", error.as_ref()))?;
        }
        Some(PartName::Uplink) => {
            let ended = uplink::run(&UplinkOptions { state_dir: state });
            ended.map_err(|error| failed("the uplink cannot go on", &error))?;
        }
    }
    Ok(ExitCode::Done)
}

/// Runs the controller of a state folder, until it is told to end.
///
/// # Errors
/// When it cannot begin or go on; whoever started it starts it again.
pub fn controller(context: &Context) -> Result<ExitCode, CliError> {
    let state = context.folder.root().to_owned();
    controller::run(&ControllerOptions { state }, http::open).map_err(|error| {
        CliError::caused(Code::IO, "the controller cannot go on", error.as_ref())
            .at(short(context.folder.root()))
    })?;
    Ok(ExitCode::Done)
}

/// Returns the command that starts a part.
fn command(context: &Context, args: &PartArgs, part: PartName) -> Result<Vec<OsString>, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::caused(Code::IO, "failed to find this program", &error))?;
    let name = match part {
        PartName::Keeper => "keeper",
        PartName::Agent => "agent",
        PartName::Uplink => "uplink",
    };
    let mut command: Vec<OsString> = vec![program.into(), "agent".into(), "--part".into()];
    command.extend([name.into(), "--state".into(), context.folder.root().into()]);
    command.extend(args.alone.then(|| "--alone".into()));
    command.extend(args.no_cgroups.then(|| "--no-cgroups".into()));
    Ok(command)
}
