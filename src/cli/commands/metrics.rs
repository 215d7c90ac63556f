//! metrics: the figures of this machine's node for Prometheus, by a process beside the agent.

use std::io;
use std::net::SocketAddr;

use super::files::only_here;
use crate::agent::setup::METRICS_SERVICE;
use crate::cli::args::Metrics;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::nats::argument;
use crate::cli::out::Out;
use crate::domain::code::{Code, ExitCode};
use crate::head::folder::write_whole;
use crate::http;

/// Prints the figures, or serves them.
pub(super) async fn metrics(
    context: &Context,
    listen: Option<SocketAddr>,
    out: Out,
) -> Result<ExitCode, CliError> {
    only_here(context, "metrics")?;
    let Some(address) = listen else {
        out.data(&http::page_of(context).await?);
        return Ok(ExitCode::Done);
    };
    let mut interrupts = Interrupts::watch()?;
    match interrupts.guard(http::serve_node(context.clone(), address)).await {
        Ok(served) => served.map(|()| ExitCode::Done),
        Err(_) => Ok(ExitCode::Done),
    }
}

/// Has the figures served by a service of this node from its next start on, or not any more.
pub(super) fn supervise(context: &Context, wanted: Option<Metrics>) -> Result<(), CliError> {
    let folder = context.folder.internal_services();
    let path = folder.join(format!("{}.toml", *METRICS_SERVICE));
    let done = match wanted {
        None => Ok(()),
        Some(Metrics::Off) => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
        Some(Metrics::At(address)) => std::fs::create_dir_all(&folder).and_then(|()| {
            let text = spec(context, address, &std::env::current_exe()?);
            write_whole(&path, text.as_bytes(), 0o600)
        }),
    };
    done.map_err(|error| {
        CliError::caused(Code::IO, "failed to write the set-up", &error).at(short(&path))
    })
}

fn spec(context: &Context, address: SocketAddr, program: &std::path::Path) -> String {
    let user = if context.is_root { "user = \"root\"\n" } else { "" };
    format!(
        "# Written by `smgr up --metrics`; changes are overwritten.\n\
         description = \"The figures of this node for Prometheus\"\n\
         exec = [{}, \"metrics\", \"--listen\", \"{address}\", \"--state\", {}]\n\
         working_dir = \"/\"\n{user}\n\
         [ready]\nby = \"notify\"\n",
        argument(program),
        argument(context.folder.root())
    )
}
