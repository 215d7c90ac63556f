//! `smgr down`: ends this machine's services and smgr itself, in good order.

use std::time::Duration;

use tokio::time::Instant;

use super::up::shut_down_here;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::fleet::folders;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::Out;
use crate::cli::session::{alive, until_down};
use crate::domain::code::{Code, ExitCode};
use crate::keeper::living_runs;

/// How long the end is waited for unless told otherwise; a service may take its time to stop.
const END_WITHIN: Duration = Duration::from_secs(120);

/// Ends everything; where nothing runs, there is nothing to do.
pub(super) async fn down(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    // Whatever is wrong in the files that people write: what runs can be ended.
    let contexts = folders(context);
    if contexts.iter().all(|context| alive(context).is_none()) {
        // Whoever asked would take services for stopped that only their manager has lost.
        let left: Vec<_> = contexts
            .iter()
            .flat_map(|context| living_runs(context.folder.root()).unwrap_or_default())
            .map(|run| run.to_string())
            .collect();
        if !left.is_empty() {
            let what = format!("smgr is not up here, and what it ran goes on: {}", left.join(" "));
            return Err(CliError::new(Code::AGENT_UNREACHABLE, what)
                .at(short(context.folder.root()))
                .hint("the next smgr takes it back, and ends it: smgr up -d, then smgr down")
                .next("smgr up -d"));
        }
        out.line(&format!("smgr is not up here ({})", short(context.folder.root())));
        return Ok(ExitCode::Done);
    }
    let began = Instant::now();
    let mut interrupts = Interrupts::watch()?;
    let deadline = began + context.global.timeout.unwrap_or(END_WITHIN);
    let ended = async {
        shut_down_here(context, deadline).await?;
        Ok(all_down(&contexts, deadline).await)
    };
    match interrupts.guard(ended).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(true)) => {
            let took = began.elapsed().as_secs_f64();
            out.line(&format!(
                "smgr and its services are down, {took:.2}s; what happened is kept in {}",
                short(context.folder.root())
            ));
            Ok(ExitCode::Done)
        }
        Ok(Ok(false)) => {
            Err(CliError::new(Code::STILL_RUNNING, "services are still stopping")
                .next("smgr status"))
        }
        Err(interrupted) => {
            out.note("detached: the services go on stopping");
            Ok(interrupted.exit())
        }
    }
}

async fn all_down(contexts: &[Context], deadline: Instant) -> bool {
    for context in contexts {
        if !until_down(context, Some(deadline)).await {
            return false;
        }
    }
    true
}
