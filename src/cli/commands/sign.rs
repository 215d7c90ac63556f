//! sign: the bytes of a signed wish, for somebody else to carry. Nothing is sent, and the carrier needs no key.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{release, service};
use crate::cli::args::{Output, Sign, SignAction, SignWish};
use crate::cli::client::check_nodes;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::out::Out;
use crate::cli::screen::words::{full_intent, name_of};
use crate::cli::selector::Selector;
use crate::cli::wish::{Caller, INTENT_LIFE};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::intent::Action;
use crate::head::authority::LIFE_MS_MAX;
use crate::wire::payload::Audience;

/// Signs a wish and prints it.
pub(super) async fn sign(context: &Context, args: Sign, out: Out) -> Result<ExitCode, CliError> {
    let Sign { base64, life, wish } = args;
    let as_bytes = out.form == Output::Text && !base64;
    if as_bytes && io::stdout().is_terminal() {
        let what = "a signed wish is bytes, and stdout is a terminal";
        return Err(
            CliError::new(Code::USAGE, what).hint("send it into a file or a pipe, or say --base64")
        );
    }
    let life = life.unwrap_or(INTENT_LIFE);
    if life.is_zero() || life > Duration::from_millis(LIFE_MS_MAX) {
        let what =
            format!("no node takes a wish that lives longer than {} min", LIFE_MS_MAX / 60_000);
        return Err(CliError::new(Code::USAGE, what).hint("say a time above 0: --for 15m"));
    }
    let caller = Caller::load(context, false)?;
    let (action, audience) = match wish {
        SignWish::Deploy(args) if args.waiting.detach => {
            let what = "nothing is sent, so there is nothing to detach from";
            return Err(CliError::new(Code::USAGE, what).hint("leave out --detach"));
        }
        SignWish::Deploy(args) => release::intended(context, args, out).await?,
        SignWish::Start { service } => of(context, &service, |service| Action::Start { service })?,
        SignWish::Stop { service } => of(context, &service, |service| Action::Stop { service })?,
        SignWish::Restart { service } => {
            of(context, &service, |service| Action::Restart { service })?
        }
        SignWish::Reload { service } => {
            of(context, &service, |service| Action::Reload { service })?
        }
        SignWish::Signal { service, signal } => {
            let signal = signal.number();
            of(context, &service, |service| Action::Signal { service, signal })?
        }
        SignWish::Action { command: SignAction::Run { service, action, params, yes } } => {
            let params = service::params(params)?;
            of(context, &service, |service| Action::Run {
                service,
                action,
                params,
                confirmed: yes,
            })?
        }
    };
    let is_for_ever = action.generation().is_some();
    let what = format!("{}{}", name_of(&action.verb()), service::of(&action, None));
    let signed = caller.intent_for(life, action, audience)?;
    let by = caller.principal()?;
    match (as_bytes, out.is_text()) {
        (true, _) => write(&signed.bytes)?,
        (false, true) => out.line(&STANDARD.encode(&signed.bytes)),
        (false, false) => out.json(&json!({
            "schema": "smgr.signed.v1",
            "intent": full_intent(signed.id),
            "fleet": caller.fleet.as_str(),
            "by": by.as_str(),
            "nodes": named(&signed.audience),
            "expires_in_ms": (!is_for_ever).then_some(life.as_millis() as u64),
            "envelope": STANDARD.encode(&signed.bytes),
        })),
    }
    if out.is_text() {
        let place = named(&signed.audience)
            .map_or_else(|| "the nodes that it selects".to_owned(), |nodes| nodes.join(" "));
        let until = match is_for_ever {
            true => "until a later release".to_owned(),
            false => format!("within {}s", life.as_secs()),
        };
        out.note(&format!("signed by {by} and not sent: {what} on {place}, to be taken {until}"));
    }
    Ok(ExitCode::Done)
}

fn named(audience: &Audience) -> Option<Vec<&str>> {
    match audience {
        Audience::Nodes(nodes) => Some(nodes.iter().map(NodeId::as_str).collect()),
        Audience::All | Audience::Select { .. } => None,
    }
}

/// Returns a wish about a whole service on the nodes that are named, or on this one. Nobody is asked where the service
/// is: whoever signs may be offline.
fn of(
    context: &Context,
    selector: &Selector,
    action: impl FnOnce(ServiceId) -> Action,
) -> Result<(Action, Audience), CliError> {
    let service = service::whole_service(selector)?;
    check_nodes(context, selector.node.as_ref())?;
    let nodes = context.global.nodes.iter().chain(selector.node.as_ref());
    let mut nodes: Vec<NodeId> = nodes.cloned().collect();
    if nodes.is_empty() {
        nodes.push(context.own_node()?);
    }
    Ok((action(service), Audience::Nodes(nodes)))
}

/// Writes all of it: half an envelope on a full disk is no envelope.
fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| CliError::caused(Code::IO, "the wish could not be written", &error))
}
