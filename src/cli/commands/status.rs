//! `smgr status`: what runs, what not, why.

use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::domain::code::{Code, ExitCode};
use crate::wire::payload::{Ask, Reply};
use crate::wire::status::NodeStatus;

/// Prints the status of nodes.
pub(super) async fn status(
    context: &Context,
    selector: Option<Selector>,
    at: Option<String>,
    out: Out,
) -> Result<ExitCode, CliError> {
    if at.is_some() {
        return Err(CliError::not_yet("`smgr status --at`"));
    }
    let node = selector.as_ref().and_then(|selector| selector.node.clone());
    let mut client = Client::connect(context, &Whom::new(context, node)).await?;
    let mut pending = client.ask(Ask::Status).await?;
    let mut nodes: Vec<NodeStatus> = Vec::new();
    while let Some(answer) = pending.next().await? {
        match answer.reply {
            Reply::Status(status) => nodes.push(*status),
            Reply::Refused { code, why } => {
                return Err(CliError::new(code.parse().unwrap_or(Code::INTERNAL), why));
            }
            _ => {}
        }
    }
    for node in &nodes {
        out.line(&format!("{}   {} instances", node.node, node.instances.len()));
        for instance in &node.instances {
            out.line(&format!(
                "{}/{}  {:?}  {:?}",
                instance.service, instance.index, instance.state, instance.pid
            ));
        }
    }
    Ok(ExitCode::Done)
}
