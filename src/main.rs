//! The one binary.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use smgr::keeper::{self, KeeperOptions, LaunchOptions};

/// A service manager for one machine or a whole fleet.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of this node.
    Agent(AgentArguments),
}

#[derive(clap::Args)]
struct AgentArguments {
    /// Where this node keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/smgr")]
    state: PathBuf,
    /// Run one part only; the launcher starts the others.
    #[arg(long, value_enum, hide = true, default_value = "launcher")]
    part: Part,
    /// Start no agent and no uplink beside the keeper.
    #[arg(long, hide = true)]
    alone: bool,
    /// Hold the processes of a run together without cgroups.
    #[arg(long, hide = true)]
    no_cgroups: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Launcher,
    Keeper,
    Agent,
    Uplink,
}

fn main() -> anyhow::Result<ExitCode> {
    let Command::Agent(arguments) = Arguments::parse().command;
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
        Part::Launcher => {
            let options = LaunchOptions { state: state.clone(), keeper: command("keeper") };
            keeper::launch(&options).context("the launcher failed")
        }
        Part::Keeper => {
            let part = |name| (!arguments.alone).then(|| command(name));
            let options = KeeperOptions {
                agent: part("agent"),
                uplink: part("uplink"),
                may_use_cgroups: !arguments.no_cgroups,
                state: state.clone(),
            };
            keeper::run(options).context("the keeper failed")
        }
        Part::Agent | Part::Uplink => anyhow::bail!("this part is not built yet"),
    }
}
