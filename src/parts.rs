//! `smgr agent`: runs one part of a node, or the launcher that starts them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use smgr::agent::{self, AgentOptions};
use smgr::keeper::{self, KeeperOptions, LaunchOptions};
use smgr::uplink::{self, UplinkOptions};

/// Run the parts of a node; `smgr up` and service units call this.
#[derive(Parser)]
#[command(name = "smgr agent")]
struct Arguments {
    /// Where this node keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/smgr")]
    state: PathBuf,
    /// One part, started by another.
    #[arg(long, value_enum, hide = true)]
    part: Option<Part>,
    /// Start no agent and no uplink beside the keeper.
    #[arg(long, hide = true)]
    alone: bool,
    /// Hold the processes of a run together without cgroups.
    #[arg(long, hide = true)]
    no_cgroups: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Keeper,
    Agent,
    Uplink,
}

/// Runs what the arguments behind `smgr` ask for.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args.into_iter().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match run_part(&arguments) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_part(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let state = std::path::absolute(&arguments.state).context("the state folder has no name")?;
    let own = std::env::current_exe().context("failed to find this program")?;
    let command = |part: &str| -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![own.clone().into(), "agent".into(), "--part".into()];
        command.extend([part.into(), "--state".into(), state.clone().into()]);
        command.extend(arguments.alone.then(|| "--alone".into()));
        command.extend(arguments.no_cgroups.then(|| "--no-cgroups".into()));
        command
    };
    match arguments.part {
        None => {
            let options = LaunchOptions { keeper: command("keeper"), state };
            keeper::launch(&options).context("the launcher failed")
        }
        Some(Part::Keeper) => {
            let part = |name| (!arguments.alone).then(|| command(name));
            let (agent, uplink) = (part("agent"), part("uplink"));
            let may_use_cgroups = !arguments.no_cgroups;
            keeper::run(KeeperOptions { state, agent, uplink, may_use_cgroups })
                .context("the keeper failed")
        }
        Some(Part::Agent) => {
            agent::run(AgentOptions { state }).context("the agent failed")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Part::Uplink) => {
            uplink::run(&UplinkOptions { state_dir: state }).context("the uplink failed")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
