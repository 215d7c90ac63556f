//! The face for people and jobs: reads a command line, asks agents, prints, and exits with a number that says what
//! happened. It decides nothing that an agent would have to believe.

pub mod args;
pub mod client;
pub mod commands;
pub mod context;
pub mod error;
pub mod feed;
pub mod fleet;
pub mod follow;
pub mod interrupt;
pub mod json;
pub mod launch;
pub mod missing;
pub mod nats;
pub mod out;
pub mod parts;
pub mod plan;
pub mod screen;
pub mod selector;
pub mod session;
pub mod specs;
pub mod time;
pub mod verdict;
pub mod view;
pub mod wish;
pub mod witness;

#[cfg(test)]
pub(crate) mod sample;

use std::ffi::OsString;

use args::{Cli, Command, Output, Parsed};
use context::Context;
use error::CliError;
use out::Out;

use crate::domain::code::{Code, ExitCode};

/// What one who types nothing but `smgr` reads.
const GREETING: &str = "\
smgr supervises services on this machine: it starts them, watches them, restarts them,
keeps their logs, and can prove what happened.

  smgr up                                   start it here; Ctrl-C stops all of it
  smgr run hello -- python3 -m http.server  supervise any command
  smgr status                               what runs, what not, why
  smgr history hello                        what happened, and on whose authority

more: smgr --help     the spec file: smgr help spec     a commented example: smgr init
";

/// Reads a command line, carries it out, prints what went wrong, and returns how to exit.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // Also a command line that was not understood answers in the form that it asked for.
    let wants_json = args.windows(2).any(|pair| {
        matches!(pair[0].to_str(), Some("-o" | "--output"))
            && matches!(pair[1].to_str(), Some("json" | "jsonl" | "cloudevents"))
    });
    let form = if wants_json { Output::Json } else { Output::Text };
    let ended = match args::parse(args) {
        Ok(Parsed::Text(text)) => {
            Out { form: Output::Text }.data(&text);
            Ok(ExitCode::Done)
        }
        Ok(Parsed::Command(cli)) => carry_out(*cli),
        Err(error) => Err(error),
    };
    ended.unwrap_or_else(|error| {
        Out { form }.error(&error);
        error.exit()
    })
}

fn carry_out(cli: Cli) -> Result<ExitCode, CliError> {
    let out = Out { form: cli.global.output };
    let Some(command) = cli.command else {
        out.data(GREETING);
        return Ok(ExitCode::Done);
    };
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::caused(Code::IO, "failed to start", &error))
    };
    if let Command::DemoServer { says } = &command {
        // A service: it knows no folder of smgr.
        return runtime()?.block_on(commands::demo::server::serve(says));
    }
    let context = Context::new(cli.global)?;
    if let Command::Agent(args) = &command {
        // The keeper must not run in a runtime: it makes processes.
        return parts::run(&context, args);
    }
    if let Command::Controller = &command {
        return parts::controller(&context);
    }
    if let Command::Emulate(args) = &command {
        return commands::emulate::run(&context, args, out);
    }
    runtime()?.block_on(commands::carry_out(&context, command, out))
}
