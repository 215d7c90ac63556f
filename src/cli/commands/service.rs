//! start, stop, restart, reload, signal, action run: one signed wish for each service, and what came of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::time::Instant;

use super::{place, ramp, release};
use crate::cli::args::{Output, Over, Targets, Waiting};
use crate::cli::client::{Client, Whom, is_of_fleet};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::interrupt::{Interrupted, Interrupts};
use crate::cli::json;
use crate::cli::json::event::{Beside, event_json};
use crate::cli::launch;
use crate::cli::out::{Out, width};
use crate::cli::screen::outcome::Act;
use crate::cli::screen::units::clock;
use crate::cli::screen::words::name_of;
use crate::cli::selector::Selector;
use crate::cli::verdict::{Verdict, Verdicts, carry_out};
use crate::cli::wish::Signed;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::Cause;
use crate::domain::id::{ActionName, IntentId, NodeId, ServiceId};
use crate::domain::intent::Action;
use crate::domain::selector::Selector as NodeSelector;
use crate::wire::payload::EventRecord;

/// Does the same to each service, one after the other; the first exit code that is not 0 is that of the command.
pub(super) async fn each(
    context: &Context,
    targets: &Targets,
    out: Out,
    action: impl Fn(ServiceId) -> Action,
) -> Result<ExitCode, CliError> {
    let mut exit = ExitCode::Done;
    for selector in &targets.services {
        let service = whole_service(selector)?;
        if let Some(select) = selection(context, selector, &targets.over)? {
            let action = action(service);
            let ended =
                ramp::over(context, (select, &targets.over), action, targets.waiting, out).await?;
            exit = if exit == ExitCode::Done { ended } else { exit };
            continue;
        }
        let verb = name_of(&action(service.clone()).verb());
        let whom = Whom::new(context, place::of(context, Some(selector), &verb).await?);
        let ended = wish(context, &whom, action(service), targets.waiting, out).await?;
        exit = if exit == ExitCode::Done { ended } else { exit };
    }
    Ok(exit)
}

/// Runs a declared action.
pub(super) async fn action(
    context: &Context,
    (selector, over): (&Selector, &Over),
    (action, params, confirmed): (ActionName, Vec<(String, String)>, bool),
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let service = whole_service(selector)?;
    let action = Action::Run { service, action, params: self::params(params)?, confirmed };
    if let Some(select) = selection(context, selector, over)? {
        return ramp::over(context, (select, over), action, waiting, out).await;
    }
    let whom = Whom::new(context, place::of(context, Some(selector), "action run").await?);
    wish(context, &whom, action, waiting, out).await
}

/// Returns the nodes that are selected, unless one is named.
pub(super) fn selection<'o>(
    context: &Context,
    selector: &Selector,
    over: &'o Over,
) -> Result<Option<&'o NodeSelector>, CliError> {
    let is_named = selector.node.is_some() || !context.global.nodes.is_empty();
    match &over.select {
        Some(_) if is_named => Err(place::named_and_selected()),
        select => Ok(select.as_ref()),
    }
}

/// Takes the parameters of an action, each once.
pub(super) fn params(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CliError> {
    let count = given.len();
    let params: BTreeMap<String, String> = given.into_iter().collect();
    match params.len() == count {
        true => Ok(params),
        false => Err(CliError::new(Code::BAD_PARAMETER, "a parameter is given twice")),
    }
}

pub(super) fn whole_service(selector: &Selector) -> Result<ServiceId, CliError> {
    match selector.index {
        None => Ok(selector.service.clone()),
        Some(_) => Err(CliError::new(
            Code::BAD_SELECTOR,
            format!("`{selector}` names one instance; this is done to the whole service"),
        )
        .hint(format!("say `{}`", Selector { index: None, ..selector.clone() }))),
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
    wish_after(context, whom, action, None, waiting, out).await
}

/// The same; `before` is what the service ran from until then, where it is known.
pub(super) async fn wish_after(
    context: &Context,
    whom: &Whom,
    action: Action,
    before: Option<&str>,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let began = Instant::now();
    let (signed, verdicts) = match hear(context, whom, &action, waiting, out).await? {
        Ok(heard) => heard,
        Err(interrupted) => return Ok(interrupted.exit()),
    };
    if let Some(action) = confirmed(&action, &verdicts, out) {
        return Box::pin(wish_after(context, whom, action, before, waiting, out)).await;
    }
    let exit = verdicts.exit(waiting.detach);
    if !out.is_text() {
        out.json(&verdicts.result(&signed, waiting.detach));
        return Ok(exit);
    }
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let pids = match &action {
        Action::Start { service } if exit == ExitCode::Done && !waiting.detach => {
            pids(context, whom, service).await
        }
        _ => Vec::new(),
    };
    let in_fleet = is_of_fleet(context);
    let act = Act { action: &action, verdicts: &verdicts, pids: &pids, took_ms, in_fleet, before };
    out.data(&act.text(width()));
    let errors = verdicts.nodes.iter().filter_map(|(node, it)| it.error(node, waiting.detach));
    for error in errors {
        let error = release::told(error, &action, before);
        let error = until_when(error, &signed);
        out.error(&with_next(context, whom, error, &action).await);
    }
    Ok(exit)
}

/// Asks whoever sits at a terminal, where no node runs an action without a yes; returns the action with it.
fn confirmed(action: &Action, verdicts: &Verdicts, out: Out) -> Option<Action> {
    let wants_yes = |verdict: &Verdict| match verdict {
        Verdict::Refused(error) => error.code == Code::NOT_CONFIRMED,
        _ => false,
    };
    let is_asked = out.is_text() && io::stdin().is_terminal() && io::stderr().is_terminal();
    if !is_asked || !verdicts.nodes.values().all(wants_yes) {
        return None;
    }
    let Action::Run { service, action, params, .. } = action.clone() else { return None };
    let nodes: Vec<_> = verdicts.nodes.keys().map(NodeId::as_str).collect();
    out.note(&format!("run {action} of {service} on {}? Type yes:", nodes.join(" ")));
    let mut answer = String::new();
    let is_yes = io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes";
    is_yes.then_some(Action::Run { service, action, params, confirmed: true })
}

/// Returns the main processes of a service on the one node that was asked.
async fn pids(context: &Context, whom: &Whom, service: &ServiceId) -> Vec<u32> {
    let Ok(mut client) = Client::connect(context, whom).await else { return Vec::new() };
    let instances = launch::status(&mut client).await.map(|status| status.instances);
    let own = instances.into_iter().flatten().filter(|it| it.service == *service);
    own.filter_map(|it| it.pid).collect()
}

/// What becomes of the result of a wish in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the result of the command.
    Last,
    /// Another wish follows where this one was done, and has the result.
    Before,
}

/// Sends one wish and prints only what is not as asked, and in JSON the result.
pub(super) async fn outcome(
    context: &Context,
    whom: &Whom,
    action: Action,
    waiting: Waiting,
    (place, out): (Place, Out),
) -> Result<Result<Verdicts, Interrupted>, CliError> {
    let (signed, verdicts) = match hear(context, whom, &action, waiting, out).await? {
        Ok(heard) => heard,
        Err(interrupted) => return Ok(Err(interrupted)),
    };
    let is_done = verdicts.exit(waiting.detach) == ExitCode::Done;
    if !out.is_text() && place == Place::Before && is_done {
        return Ok(Ok(verdicts));
    }
    if !out.is_text() {
        out.json(&verdicts.result(&signed, waiting.detach));
    }
    if let [(_, Verdict::Refused(error))] = verdicts.nodes.iter().collect::<Vec<_>>()[..] {
        return Err(error.clone());
    } else {
        let errors = verdicts.nodes.iter().filter_map(|(node, it)| it.error(node, waiting.detach));
        for error in errors {
            out.error(&with_next(context, whom, error, &action).await);
        }
    }
    Ok(Ok(verdicts))
}

/// Sends one wish and hears what came of it; a signal ends the wait and nothing else.
async fn hear(
    context: &Context,
    whom: &Whom,
    action: &Action,
    waiting: Waiting,
    out: Out,
) -> Result<Result<(Signed, Verdicts), Interrupted>, CliError> {
    let mut interrupts = Interrupts::watch()?;
    let mut client = Client::connect(context, whom).await?;
    let signed = client.wish(action.clone())?;
    let mut watch = match (out.form, waiting.detach) {
        (Output::Jsonl, false) => Watch::begin(context, whom, action, &signed).await,
        _ => None,
    };
    let verdicts = tokio::select! {
        verdicts = carry_out(context, whom, &mut client, &signed, waiting.detach) => verdicts?,
        never = Watch::show_all(&mut watch, context, whom, out) => match never {},
        interrupted = interrupts.next() => {
            out.note("detached: nothing was cancelled, it goes on");
            out.note(&format!("next: smgr history{}", of(action, whom.only())));
            return Ok(Err(interrupted));
        }
    };
    Watch::show(&mut watch, context, whom, out, false).await;
    Ok(Ok((signed, verdicts)))
}

/// The events that a wish leads to, for `--wait -o jsonl`.
struct Watch {
    client: Client,
    feed: Feed,
    intent: IntentId,
    service: Option<ServiceId>,
}

impl Watch {
    /// Begins at the present head; `None` where events cannot be had, for the result is what counts.
    async fn begin(context: &Context, whom: &Whom, action: &Action, wish: &Signed) -> Option<Self> {
        let mut client = Client::connect(context, whom).await.ok()?;
        let head = launch::status(&mut client).await?.head;
        let feed = Feed::after(Some(head));
        Some(Self { client, feed, intent: wish.id, service: action.service().cloned() })
    }

    /// Prints events as they come.
    async fn show_all(
        this: &mut Option<Self>,
        context: &Context,
        whom: &Whom,
        out: Out,
    ) -> Infallible {
        Self::show(this, context, whom, out, true).await;
        std::future::pending().await
    }

    /// Prints events until there is none, or as long as there can be one.
    async fn show(this: &mut Option<Self>, context: &Context, whom: &Whom, out: Out, wait: bool) {
        while let Some(watch) = this {
            match watch.feed.next(context, whom, &mut watch.client, wait).await {
                Ok(Turn::Event(record)) => watch.print(&record, out),
                Ok(Turn::CaughtUp(_)) if wait => {}
                Ok(Turn::CaughtUp(_)) | Err(_) => *this = None,
            }
        }
    }

    fn print(&self, record: &EventRecord, out: Out) {
        let is_ours = record.cause == Some(Cause::Intent(self.intent));
        if is_ours || self.service.is_some() && record.service == self.service {
            out.line(&json::line(&event_json(record, &Beside::default())));
        }
    }
}

/// Says until when a wish of which nothing was heard may still be taken.
fn until_when(error: CliError, wish: &Signed) -> CliError {
    match wish.expires().filter(|_| error.code == Code::OUTCOME_UNKNOWN) {
        Some(until) => error.hint(format!("it may still be taken until {}", clock(until))),
        None => error,
    }
}

async fn with_next(context: &Context, whom: &Whom, error: CliError, action: &Action) -> CliError {
    match (&error.next, action.service()) {
        (None, Some(service)) if error.code == Code::NO_SUCH_SERVICE => {
            launch::with_likely(context, whom, service, error).await
        }
        (None, Some(service)) => {
            // The verdict of a node is about what is there.
            let node = error.place.as_ref().and_then(|place| place.parse().ok());
            let node = node.filter(|_| is_of_fleet(context));
            let name = Selector { node, ..Selector::service(service.clone()) };
            error.next(format!("smgr status {name}    smgr logs {name}"))
        }
        _ => error,
    }
}

pub(super) fn of(action: &Action, node: Option<&NodeId>) -> String {
    let name = |service: &ServiceId| Selector {
        node: node.cloned(),
        ..Selector::service(service.clone())
    };
    action.service().map_or_else(String::new, |service| format!(" {}", name(service)))
}
