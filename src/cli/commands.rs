//! What each command does. One file for each family; the choice is here.

mod down;
mod service;
mod status;
mod up;

use super::args::{ActionCommand, Command};
use super::context::Context;
use super::error::CliError;
use super::out::Out;
use crate::domain::code::ExitCode;
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
    match command {
        Command::Up(args) => up::up(context, args, out).await,
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
        Command::Action { command: ActionCommand::Run { service, action, params, waiting } } => {
            service::action(context, &service, action, params, waiting, out).await
        }
        Command::Status { selector, at } => status::status(context, selector, at, out).await,
        _ => Err(CliError::not_yet("this command")),
    }
}
