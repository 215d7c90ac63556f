//! What each command does. One file for each family; the choice is here.

mod archive;
mod audit;
mod config;
mod configure;
pub(super) mod demo;
mod down;
mod edit;
pub(super) mod emulate;
mod files;
mod fleet;
mod logs;
mod metrics;
mod node;
mod offline;
pub(crate) mod place;
pub(crate) mod ramp;
mod reading;
pub(crate) mod release;
pub(crate) mod rollout;
mod service;
mod sign;
mod status;
mod token;
mod topics;
mod up;

use super::args::{ActionCommand, AuditCommand, Command, ConfigCommand};
use super::client;
use super::context::Context;
use super::error::CliError;
use super::out::Out;
use super::selector::Selector;
use crate::domain::code::{Code, ExitCode};
use crate::domain::intent::Action;

/// Carries out a command.
///
/// # Errors
/// What went wrong, with its exit code.
pub async fn carry_out(
    context: &Context,
    command: Command,
    out: Out,
) -> Result<ExitCode, CliError> {
    client::check_nodes(context, &context.global.nodes)?;
    match command {
        Command::Up(args) => up::up(&context.by("up"), args, out).await,
        Command::Down => down::down(context, out).await,
        Command::Attach => up::attach(context, out).await,
        Command::Start(targets) => {
            service::each(context, &targets, out, |service| Action::Start { service }).await
        }
        Command::Stop(targets) => {
            service::each(context, &targets, out, |service| Action::Stop { service }).await
        }
        Command::Restart(targets) => {
            service::each(context, &targets, out, |service| Action::Restart { service }).await
        }
        Command::Reload(targets) => {
            service::each(context, &targets, out, |service| Action::Reload { service }).await
        }
        Command::Signal { signal, targets } => {
            let signal = signal.number();
            service::each(context, &targets, out, |service| Action::Signal { service, signal })
                .await
        }
        Command::Action {
            command: ActionCommand::Run { service, action, params, yes, over, waiting },
        } => service::action(context, (&service, &over), (action, params, yes), waiting, out).await,
        Command::Sign(args) => sign::sign(context, args, out).await,
        Command::Status { scope, at } => {
            let (context, selector) = context.scoped(scope);
            status::status(&context, selector, at, out).await
        }
        Command::Run(args) => files::run(&context.by("run"), args, out).await,
        Command::Remove { service, select: Some(select), waiting } => {
            let remove = |service, generation| Action::Remove { service, generation };
            let whence = (Selector::service(service), select);
            release::over_fleet(context, whence, remove, waiting, out).await
        }
        Command::Remove { service, select: None, waiting } => {
            files::remove(context, service, waiting, out).await
        }
        Command::Deploy(args) => release::deploy(context, args, out).await,
        Command::Rollback { service, select, waiting } => {
            release::rollback(context, &service, select, waiting, out).await
        }
        Command::Rollout { command } => rollout::rollout(context, command, out).await,
        Command::Apply { services, waiting } => files::apply(context, services, waiting, out).await,
        Command::Logs { selector, select, lines, follow } => {
            logs::logs(context, (selector, select), (lines, follow), out).await
        }
        Command::Events(args) => reading::events(context, args, out).await,
        Command::History(args) => reading::history(context, args, out).await,
        Command::Node { command } => node::node(context, command, out).await,
        Command::Token { command } => token::token(context, command, out),
        Command::Metrics { listen } => metrics::metrics(context, listen, out).await,
        Command::Ping => reading::ping(context, out).await,
        Command::Audit {
            command: AuditCommand::Verify { folder: None, pin: None, root: None },
        } if !context.global.nodes.is_empty() => audit::verify_nodes(context, out).await,
        Command::Audit { command: AuditCommand::Verify { folder, pin, root } } => {
            audit::verify(context, folder, pin.as_deref(), root, out)
        }
        Command::Audit { command: AuditCommand::Pin } => audit::pin(context, out),
        Command::Replay { folder } => offline::replay(context, folder, out).await,
        Command::Plan(planned) => match planned.file.is_some() {
            true => release::plan(context, planned, out).await,
            false => config::plan(context, &planned.services, out).await,
        },
        Command::Edit { service } => edit::edit(context, &service, out).await,
        Command::Config { command: ConfigCommand::Show(args) } => {
            config::show(context, &args, out).await
        }
        Command::Config { command: ConfigCommand::Set(args) } => {
            edit::set(context, &args, out).await
        }
        Command::Config { command: ConfigCommand::Unset(args) } => {
            configure::unset(context, &args, out).await
        }
        Command::Config { command: ConfigCommand::Check { paths } } | Command::Check { paths } => {
            topics::check(context, &paths, out)
        }
        Command::Init => topics::init(context, out),
        Command::Demo { folder } => demo::demo(context, &folder, out),
        Command::Backup { file } => topics::backup(context, &file, out),
        Command::Help { topic } => topics::help(&topic, out),
        Command::Explain { code } => topics::explain(code, out),
        Command::Completions { shell } => Ok(topics::completions(shell, out)),
        // Taken out before there is a runtime.
        Command::Agent(_)
        | Command::Controller
        | Command::DemoServer { .. }
        | Command::Emulate(_) => Err(CliError::new(Code::INTERNAL, "a part in a runtime")),
    }
}
