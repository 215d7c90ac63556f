//! start, stop, restart, reload, signal, action run: one signed wish for each service, and what came of it.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::cli::args::{Targets, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::Out;
use crate::cli::screen::words::signal_name;
use crate::cli::selector::Selector;
use crate::cli::verdict::{Verdict, Verdicts, carry_out};
use crate::cli::wish::Signed;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::Outcome;
use crate::domain::id::{ActionName, NodeId, ServiceId};
use crate::domain::intent::Action;

/// Does the same to each service, one after the other; the first exit code that is not 0 is that of the command.
pub(super) async fn each(
    context: &Context,
    targets: &Targets,
    out: Out,
    action: impl Fn(ServiceId) -> Action,
) -> Result<ExitCode, CliError> {
    let mut exit = ExitCode::Done;
    for selector in &targets.services {
        let (service, node) = whole_service(selector)?;
        let whom = Whom::new(context, node);
        let ended = wish(context, &whom, action(service), targets.waiting, out).await?;
        exit = if exit == ExitCode::Done { ended } else { exit };
    }
    Ok(exit)
}

/// Runs a declared action.
pub(super) async fn action(
    context: &Context,
    selector: &Selector,
    action: ActionName,
    params: Vec<(String, String)>,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (service, node) = whole_service(selector)?;
    let count = params.len();
    let params: BTreeMap<String, String> = params.into_iter().collect();
    if params.len() != count {
        return Err(CliError::new(Code::BAD_PARAMETER, "a parameter is given twice"));
    }
    let whom = Whom::new(context, node);
    wish(context, &whom, Action::Run { service, action, params }, waiting, out).await
}

fn whole_service(selector: &Selector) -> Result<(ServiceId, Option<NodeId>), CliError> {
    match selector.index {
        None => Ok((selector.service.clone(), selector.node.clone())),
        Some(_) => Err(CliError::new(
            Code::BAD_SELECTOR,
            format!("`{selector}` names one instance; this is done to the whole service"),
        )
        .hint(format!("say `{}`", selector.service))),
    }
}

/// Sends one wish and prints what came of it.
pub(super) async fn wish(
    context: &Context,
    whom: &Whom,
    action: Action,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let began = Instant::now();
    let Some((signed, verdicts)) = hear(context, whom, &action, waiting, out).await? else {
        return Ok(ExitCode::Interrupted);
    };
    let exit = verdicts.exit(waiting.detach);
    if out.is_text() {
        print(&action, &verdicts, waiting.detach, began, out);
    } else {
        out.json(&verdicts.json(&signed, waiting.detach));
    }
    Ok(exit)
}

/// Sends one wish and prints only what is not as asked; `None` when it was interrupted and goes on.
pub(super) async fn outcome(
    context: &Context,
    whom: &Whom,
    action: Action,
    waiting: Waiting,
    out: Out,
) -> Result<Option<Verdicts>, CliError> {
    let Some((signed, verdicts)) = hear(context, whom, &action, waiting, out).await? else {
        return Ok(None);
    };
    if !out.is_text() {
        out.json(&verdicts.json(&signed, waiting.detach));
    } else if let [(_, Verdict::Refused(error))] = verdicts.nodes.iter().collect::<Vec<_>>()[..] {
        return Err(error.clone());
    } else {
        let errors = verdicts.nodes.iter().filter_map(|(node, it)| it.error(node, waiting.detach));
        errors.for_each(|error| out.error(&with_next(error, &action)));
    }
    Ok(Some(verdicts))
}

async fn hear(
    context: &Context,
    whom: &Whom,
    action: &Action,
    waiting: Waiting,
    out: Out,
) -> Result<Option<(Signed, Verdicts)>, CliError> {
    let mut interrupts = Interrupts::watch()?;
    let mut client = Client::connect(context, whom).await?;
    let signed = client.wish(action.clone())?;
    let work = carry_out(context, whom, &mut client, &signed, waiting.detach);
    match interrupts.guard(work).await {
        Ok(verdicts) => verdicts.map(|verdicts| Some((signed, verdicts))),
        Err(_) => {
            out.note("detached: nothing was cancelled, it goes on");
            out.note(&format!("next: smgr history{}", of(action)));
            Ok(None)
        }
    }
}

fn print(action: &Action, verdicts: &Verdicts, detach: bool, began: Instant, out: Out) {
    let alone = verdicts.nodes.len() == 1;
    for (node, verdict) in &verdicts.nodes {
        let at = if alone { String::new() } else { format!("@{node}") };
        let subject = match action.service() {
            Some(service) => format!("{service}{at}"),
            None => node.to_string(),
        };
        match verdict {
            Verdict::Ended(Outcome::Done { changed: true }, _) => {
                let took = began.elapsed().as_secs_f64();
                out.line(&format!("{subject} {}, {took:.2}s", done(action)));
            }
            Verdict::Ended(Outcome::Done { changed: false }, _) => {
                out.line(&format!("{subject} {} already; nothing to do", is(action)));
            }
            Verdict::Accepted(event) if detach => {
                out.line(&format!("{subject} accepted as {event}"));
            }
            Verdict::Accepted(_) | Verdict::Ended(..) | Verdict::Refused(_) | Verdict::Silent => {
                let error = verdict.error(node, detach);
                error.iter().for_each(|error| out.error(&with_next(error.clone(), action)));
            }
        }
    }
}

fn with_next(error: CliError, action: &Action) -> CliError {
    match (&error.next, action.service()) {
        (None, Some(service)) if error.code == Code::NO_SUCH_SERVICE => {
            error.hint(format!("is `{service}` spelt right?")).next("smgr status")
        }
        (None, Some(service)) => {
            error.next(format!("smgr status {service}    smgr logs {service}"))
        }
        _ => error,
    }
}

fn of(action: &Action) -> String {
    action.service().map_or_else(String::new, |service| format!(" {service}"))
}

fn done(action: &Action) -> String {
    match action {
        Action::Start { .. } => "is running".to_owned(),
        Action::Stop { .. } => "is stopped".to_owned(),
        Action::Restart { .. } => "restarted".to_owned(),
        Action::Reload { .. } => "reloaded".to_owned(),
        Action::Signal { signal, .. } => format!("got signal {}", signal_name(*signal)),
        Action::Run { action, .. } => format!("ran {action}"),
        Action::Apply { .. } => "matches its files".to_owned(),
        Action::Shutdown { .. } => "is shutting down".to_owned(),
    }
}

fn is(action: &Action) -> &'static str {
    match action {
        Action::Start { .. } => "is running",
        Action::Stop { .. } => "is stopped",
        Action::Restart { .. } | Action::Reload { .. } => "is up to date",
        Action::Signal { .. } | Action::Run { .. } => "was done",
        Action::Apply { .. } => "matches its files",
        Action::Shutdown { .. } => "is down",
    }
}
