//! run, remove, apply: the spec files of this machine, and making the node match them.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::place;
use super::service::{Place, outcome, wish};
use crate::cli::args::{Run, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::interrupt::Interrupted;
use crate::cli::out::{Out, width};
use crate::cli::plan::Plan;
use crate::cli::verdict::Verdict;
use crate::cli::{launch, nats, specs};
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::ServiceId;
use crate::domain::intent::Action;

/// How long the end of a service is waited for unless told otherwise.
const STOPPED_WITHIN: Duration = Duration::from_secs(120);

/// Supervises a command: writes its file, then makes the node match it.
pub(super) async fn run(context: &Context, args: Run, out: Out) -> Result<ExitCode, CliError> {
    let began = Instant::now();
    only_here(context, "run")?;
    let mut client = Client::connect(context, &Whom::default()).await?;
    let status =
        launch::status(&mut client).await.ok_or_else(|| super::super::context::not_up(context))?;
    let path = context.services.join(format!("{}.toml", args.name));
    let name = args.name;
    if status.services.iter().any(|service| service.service == name) || path.exists() {
        let error =
            CliError::new(Code::SERVICE_EXISTS, format!("there is a service {name} already"));
        return Err(match path.exists() {
            true => error.at(short(&path)).next(format!("smgr remove {name}")),
            // It is smgr's own, or comes from a project or with a release.
            false => error.hint("choose another name").next(format!("smgr status {name}")),
        });
    }
    let command = command(context, args.command)?;
    config::write_service_file(&path, &command)
        .map_err(|mistake| specs::mistaken(&[mistake], "nothing was started"))?;
    let action = Action::Apply { services: vec![name.clone()] };
    let (whom, waiting) = (Whom::default(), args.waiting);
    let ended = outcome(context, &whom, action, waiting, (Place::Before, out)).await;
    match ended {
        Ok(Ok(verdicts)) if !out.is_text() && verdicts.exit(waiting.detach) != ExitCode::Done => {
            if verdicts.nodes.values().all(|verdict| matches!(verdict, Verdict::Refused(_))) {
                drop(std::fs::remove_file(&path));
            }
            return Ok(verdicts.exit(waiting.detach));
        }
        Ok(Ok(_)) => {}
        Ok(Err(interrupted)) => return Ok(interrupted.exit()),
        Err(error) => {
            drop(std::fs::remove_file(&path)); // What was refused leaves no file that a later apply would take.
            return Err(error);
        }
    }
    // To match its file is to want it up; to wait until it is up is another wish.
    let action = Action::Start { service: name.clone() };
    let ended = outcome(context, &whom, action, waiting, (Place::Last, out)).await?;
    let verdicts = match ended {
        Ok(verdicts) => verdicts,
        Err(interrupted) => return Ok(interrupted.exit()),
    };
    let exit = verdicts.exit(args.waiting.detach);
    if !out.is_text() {
        return Ok(exit);
    }
    let status = launch::status(&mut client).await;
    let instance = status
        .and_then(|status| status.instances.into_iter().find(|instance| instance.service == name));
    let took = began.elapsed().as_secs_f64();
    match instance.as_ref().and_then(|instance| instance.pid) {
        Some(pid) => out.line(&format!("{name} is running, pid {pid}, {took:.2}s")),
        None => out.line(&format!("{name} is not running; why: smgr status {name}")),
    }
    out.line(&format!("  kept in {}      undo: smgr remove {name}", short(&path)));
    // What ended again at once was started as asked, and is not what was asked for.
    let is_up = args.waiting.detach || instance.is_some_and(|instance| instance.pid.is_some());
    Ok(if exit == ExitCode::Done && !is_up { ExitCode::NotReady } else { exit })
}

/// A shell finds programs by PATH; a service has an environment of its own, so the file holds what PATH meant here.
fn command(context: &Context, mut exec: Vec<String>) -> Result<config::Command, CliError> {
    let failed = |error: io::Error| CliError::caused(Code::IO, "no current folder", &error);
    let folder = std::env::current_dir().map_err(failed)?;
    if let Some(program) = exec.first_mut() {
        let found = match program.contains('/') {
            true => Some(folder.join(&*program)).filter(|path| path.is_file()),
            false => nats::in_path(program),
        };
        let found = found.ok_or_else(|| {
            CliError::new(Code::BAD_PATH, format!("`{program}` is not a program here"))
                .hint("name its path, or a command that PATH finds; no shell is involved")
        })?;
        *program = found.display().to_string();
    }
    Ok(config::Command {
        exec,
        working_dir: folder.display().to_string(),
        user: context.service_user(),
    })
}

/// Refuses another node: these verbs write files of this one.
pub(super) fn only_here(context: &Context, verb: &str) -> Result<(), CliError> {
    if context.global.nodes.is_empty() {
        return Ok(());
    }
    let own = context.own_node()?;
    match context.global.nodes.iter().all(|node| *node == own) {
        true => Ok(()),
        false => Err(CliError::not_yet(&format!("`smgr {verb}` for another node"))),
    }
}

/// Stops a service and removes its file.
pub(super) async fn remove(
    context: &Context,
    service: ServiceId,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    only_here(context, "remove")?;
    if context.global.nodes.is_empty() {
        place::say_where(context, &service, "remove").await;
    }
    let path = context.services.join(format!("{service}.toml"));
    if !path.exists() {
        if context.folder.internal_services().join(format!("{service}.toml")).exists() {
            let what = format!("{service} is part of smgr itself, and goes with it");
            return Err(CliError::new(Code::PART_OF_SMGR, what).next("smgr down"));
        }
        if let Some(removed) = super::release::remove(context, &service, waiting, out).await {
            return removed;
        }
        return Err(CliError::new(
            Code::NO_SUCH_SERVICE,
            format!("no file of a service {service}"),
        )
        .at(short(&path))
        .hint("services of a project are removed in its smgr.toml, then: smgr apply"));
    }
    drop(Client::connect(context, &Whom::default()).await?);
    let aside = path.with_extension("removed");
    let io = |error: io::Error| {
        CliError::caused(Code::IO, "failed to remove the file", &error).at(short(&path))
    };
    let over = override_of(context, &service)?;
    let over = over.map(|over| (over.with_extension("toml.removed"), over));
    std::fs::rename(&path, &aside).map_err(io)?;
    if let Some((aside, over)) = &over {
        std::fs::rename(over, aside).map_err(io)?;
    }
    if waiting.detach {
        // Its file is put back where it was, unless it is gone.
        let what = "a service with a file of its own is removed while one waits";
        return Err(CliError::new(Code::USAGE, what).hint("leave out --detach"));
    }
    let action = Action::Apply { services: vec![service.clone()] };
    match outcome(context, &Whom::default(), action, waiting, (Place::Last, out)).await {
        Ok(Ok(verdicts)) if verdicts.exit(false) == ExitCode::Done => {
            std::fs::remove_file(&aside).map_err(io)?;
            if !is_gone(context, &service).await? {
                let what = format!("{service} is being stopped, and goes when it has");
                return Err(CliError::new(Code::STILL_RUNNING, what)
                    .next(format!("smgr status {service}    smgr history {service}")));
            }
            if out.is_text() {
                out.line(&format!("{service} is stopped and removed; its history stays"));
                if let Some((aside, _)) = &over {
                    out.line(&format!("  its override is kept in {}", short(aside)));
                }
            }
            Ok(ExitCode::Done)
        }
        ended => {
            std::fs::rename(&aside, &path).map_err(io)?;
            if let Some((aside, over)) = &over {
                std::fs::rename(aside, over).map_err(io)?;
            }
            Ok(ended?.map_or_else(Interrupted::exit, |verdicts| verdicts.exit(false)))
        }
    }
}

/// Waits until a service without a file has stopped and is not known any more; says whether it came to that in time.
async fn is_gone(context: &Context, service: &ServiceId) -> Result<bool, CliError> {
    let whom = Whom::default();
    let mut client = Client::connect(context, &whom).await?;
    let Some(first) = launch::status(&mut client).await else { return Ok(false) };
    let mut feed = Feed::after(Some(first.head.clone()));
    let mut is_known = first.services.iter().any(|it| it.service == *service);
    let removed = async {
        while is_known {
            // Each fact about it may be the last one.
            if let Turn::Event(record) = feed.next(context, &whom, &mut client, true).await?
                && record.service.as_ref() == Some(service)
                && let Some(status) = launch::status(&mut client).await
            {
                is_known = status.services.iter().any(|it| it.service == *service);
            }
        }
        Ok(())
    };
    let within = context.global.timeout.unwrap_or(STOPPED_WITHIN);
    timeout(within, removed).await.map_or(Ok(false), |ended| ended.map(|()| true))
}

/// Returns the override that would be one of nothing without this service's file.
fn override_of(context: &Context, service: &ServiceId) -> Result<Option<PathBuf>, CliError> {
    let sources = specs::sources_here(context)?;
    let file = |folder: &PathBuf| folder.join(format!("{service}.toml"));
    let mut below = [&sources.package, &sources.vendor].into_iter().flatten().map(file);
    match below.any(|path| path.exists()) {
        true => Ok(None),
        false => Ok(sources.node.as_ref().map(file).filter(|path| path.exists())),
    }
}

/// Makes this node match its files; says first what changes.
pub(super) async fn apply(
    context: &Context,
    services: Vec<ServiceId>,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    if context.global.nodes.is_empty()
        && let Some(setup) = context.setup()?
    {
        if let Some(here) =
            specs::project_here().filter(|it| setup.specs.project.as_ref() != Some(it))
        {
            // Who writes a project beside a running smgr would wait for it in vain.
            out.note(&format!(
                "note: {} is not one of its files; to take it in: smgr down, then smgr up here",
                short(&here)
            ));
        }
        let plan = Plan::make(context, &setup, &services).await?;
        if out.is_text() {
            out.data(&plan.text(width()));
        }
    }
    let whom = Whom::new(context, None);
    wish(context, &whom, Action::Apply { services }, waiting, out).await
}
