//! `smgr agent`: the launcher, and the three parts that it leads to. Each is a process of this same binary.

use std::ffi::OsString;

use super::args::PartName;
use super::context::{Context, short};
use super::error::CliError;
use crate::agent::{self, AgentOptions};
use crate::domain::code::{Code, ExitCode};
use crate::keeper::{self, KeeperOptions, LaunchOptions};
use crate::uplink::{self, UplinkOptions};

/// Runs the launcher or one part, until it ends.
///
/// # Errors
/// When the part cannot begin or go on; whoever started it starts it again.
pub fn run(context: &Context, part: Option<PartName>) -> Result<ExitCode, CliError> {
    let state = context.folder.root().to_owned();
    let failed = |what: &str, error: &dyn std::error::Error| {
        CliError::caused(Code::IO, what, error).at(short(context.folder.root()))
    };
    match part {
        None => {
            // Without a set-up no part could begin, and the launcher would try for ever.
            let _setup = context.setup()?.ok_or_else(|| super::context::not_up(context))?;
            let keeper = command(context, PartName::Keeper)?;
            let ended = keeper::launch(&LaunchOptions { state, keeper });
            ended.map(drop).map_err(|error| failed("the launcher cannot go on", &error))?;
        }
        Some(PartName::Keeper) => {
            let has_bus = context.setup()?.is_some_and(|setup| setup.bus.is_some());
            let uplink = has_bus.then(|| command(context, PartName::Uplink)).transpose()?;
            let agent = Some(command(context, PartName::Agent)?);
            let options = KeeperOptions { state, agent, uplink, may_use_cgroups: true };
            let ended = keeper::run(options);
            ended.map(drop).map_err(|error| failed("the keeper cannot go on", &error))?;
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

/// Returns the command that starts a part.
fn command(context: &Context, part: PartName) -> Result<Vec<OsString>, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::caused(Code::IO, "failed to find this program", &error))?;
    let name = match part {
        PartName::Keeper => "keeper",
        PartName::Agent => "agent",
        PartName::Uplink => "uplink",
    };
    let state = context.folder.root().to_owned();
    Ok(vec![
        program.into(),
        "agent".into(),
        "--part".into(),
        name.into(),
        "--state".into(),
        state.into(),
    ])
}
