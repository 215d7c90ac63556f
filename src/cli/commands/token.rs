//! `smgr token`: bearer tokens for the HTTP face of the controllers of this machine.

use serde_json::json;

use crate::cli::args::TokenCommand;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::fleet::Fleet;
use crate::cli::json;
use crate::cli::out::Out;
use crate::cli::time;
use crate::controller::tokens::{TOKENS_MAX, Tokens};
use crate::domain::code::{Code, ExitCode};
use crate::domain::document::rfc3339;
use crate::domain::id::{NodeId, Principal};
use crate::head::enrol::{Member, job_key};

/// Carries out one of the commands.
pub(super) fn token(
    context: &Context,
    command: TokenCommand,
    out: Out,
) -> Result<ExitCode, CliError> {
    // Who only looks or takes back needs nothing of what jobs may.
    let fleet = match &command {
        TokenCommand::Create { .. } => Fleet::read(context)?,
        TokenCommand::List | TokenCommand::Revoke { .. } => Fleet::read_members(context)?,
    };
    let Some(fleet) = fleet else {
        return Err(CliError::new(Code::NO_SUCH_NODE, "there is no controller on this machine")
            .hint("a fleet has one: smgr up --nodes 3 --http 7465"));
    };
    let controllers = fleet.controller_members(context);
    match command {
        TokenCommand::Create { job, controller } => {
            let controller = chosen(&controllers, controller.as_ref())?;
            create(&fleet, controller, job, out)
        }
        TokenCommand::List => list(&controllers, out),
        TokenCommand::Revoke { token } => revoke(&controllers, &token, out),
    }
}

fn chosen<'m>(all: &'m [Member], named: Option<&NodeId>) -> Result<&'m Member, CliError> {
    let found = match named {
        Some(name) => all.iter().find(|member| member.name == *name),
        None => all.first(),
    };
    found.ok_or_else(|| CliError::new(Code::NO_SUCH_NODE, "no such controller in fleet.json"))
}

fn create(
    fleet: &Fleet,
    controller: &Member,
    job: Principal,
    out: Out,
) -> Result<ExitCode, CliError> {
    let is_held = job_key(&controller.folder, &job).exists();
    if !fleet.jobs.contains_key(&job) || !is_held {
        let example = format!(
            r#""jobs": {{"{job}": [{{"verbs": {{"only": ["restart", "run"]}}, "services": "all", "nodes": "all"}}]}}"#
        );
        let what = format!("{} holds no key of a job `{job}`", controller.name);
        return Err(CliError::new(Code::UNKNOWN_SIGNER, what).hint(format!(
            "say in fleet.json what it may, then smgr down and smgr up: {example}"
        )));
    }
    let mut tokens = read(controller)?;
    if tokens.tokens.len() >= TOKENS_MAX {
        let what = format!("{} has {TOKENS_MAX} tokens", controller.name);
        return Err(CliError::new(Code::BUSY, what).next("smgr token list"));
    }
    let text = tokens
        .make(job.clone(), time::now())
        .map_err(|error| CliError::caused(Code::IO, "failed to make a token", &error))?;
    write(controller, &tokens)?;
    if out.is_text() {
        out.note(&format!("a token of {job} for {}; it is not shown again", controller.name));
        out.data(&format!("{text}\n"));
    } else {
        let name = tokens.tokens.last().map(|token| token.name().to_owned());
        out.line(&json::line(&json!({
            "schema": "smgr.token.v1", "token": text, "name": name, "job": job.as_str(),
            "controller": controller.name.as_str(),
        })));
    }
    Ok(ExitCode::Done)
}

fn list(controllers: &[Member], out: Out) -> Result<ExitCode, CliError> {
    let (mut text, mut rows) = (String::new(), Vec::new());
    for controller in controllers {
        for token in read(controller)?.tokens {
            let (at, job) = (rfc3339(token.made_at), token.principal.as_str());
            text.push_str(&format!("{}  {job}  {}  made {at}\n", token.name(), controller.name));
            rows.push(json!({
                "name": token.name(), "job": job, "controller": controller.name.as_str(),
                "made_at": at,
            }));
        }
    }
    match out.is_text() {
        true if rows.is_empty() => {
            out.line("there is no token; make one: smgr token create --as JOB");
        }
        true => out.data(&text),
        false => out.document(&json!({"schema": "smgr.tokens.v1", "tokens": rows}), "tokens"),
    }
    Ok(ExitCode::Done)
}

fn revoke(controllers: &[Member], name: &str, out: Out) -> Result<ExitCode, CliError> {
    for controller in controllers {
        let mut tokens = read(controller)?;
        if tokens.revoke(name) {
            write(controller, &tokens)?;
            out.note(&format!("{} takes {name} no more", controller.name));
            return Ok(ExitCode::Done);
        }
    }
    Err(CliError::new(Code::BAD_TOKEN, format!("there is no token {name}")).next("smgr token list"))
}

fn read(controller: &Member) -> Result<Tokens, CliError> {
    Tokens::read(&controller.folder).map_err(|error| {
        CliError::caused(Code::FILE_UNREADABLE, "failed to read the tokens", &error)
            .at(short(&Tokens::path(&controller.folder)))
    })
}

fn write(controller: &Member, tokens: &Tokens) -> Result<(), CliError> {
    tokens.write(&controller.folder).map_err(|error| {
        CliError::caused(Code::IO, "failed to write the tokens", &error)
            .at(short(&Tokens::path(&controller.folder)))
    })
}
