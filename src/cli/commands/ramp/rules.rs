//! What a service says of one of its actions over a fleet: as its configuration on the nodes has it.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use tokio::time::timeout;

use crate::cli::error::CliError;
use crate::config::Told;
use crate::domain::code::Code;
use crate::domain::id::{ActionName, NodeId};
use crate::domain::rollout::Amount;

/// How long nodes are asked until one says how an action runs.
const WITHIN: Duration = Duration::from_secs(10);

/// How long the answer of one of them is waited for before that of the next counts, and how many are asked at a time: one
/// that is stuck is in nobody's way.
const EACH_WITHIN: Duration = Duration::from_secs(3);
const AT_A_TIME: usize = 16;

/// What a service says of one of its actions over a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Whether one of the nodes that are selected is enough.
    pub(crate) is_for_one: bool,
    /// On how many nodes at a time it runs.
    pub(crate) max_parallel: Vec<Amount>,
}

impl Rules {
    /// Reads them from the effective configuration of the service; nothing where it has no such action.
    pub(crate) fn of(told: &Told, action: &ActionName) -> Option<Self> {
        let value = |key: &str| Some(told.keys.get(&format!("action.{action}.{key}"))?.json());
        let amounts = match value("max_parallel")? {
            Value::Array(amounts) => amounts,
            one => vec![one],
        };
        // A number stands as a number, a share as a text.
        let read = |it: &Value| it.as_str().map_or_else(|| it.to_string(), str::to_owned).parse();
        let max_parallel = amounts.iter().map(read).collect::<Result<_, _>>().ok()?;
        Some(Self { is_for_one: value("run_on")? == "one", max_parallel })
    }
}

/// Returns how an action runs, and the first of the nodes that says so and has it; `None` where none of them has the action.
/// `asked` are the questions, each with its node.
///
/// # Errors
/// None of them says anything: what is for one node alone would run on all of them otherwise.
pub(crate) async fn rules<A: Future<Output = (NodeId, Option<Told>)>>(
    action: &ActionName,
    asked: Vec<A>,
) -> Result<Option<(NodeId, Rules)>, CliError> {
    let count = asked.len();
    let asked = stream::iter(asked).map(|asked| timeout(EACH_WITHIN, asked));
    let mut asked = Box::pin(asked.buffered(AT_A_TIME));
    let mut is_heard = false;
    let found = timeout(WITHIN, async {
        while let Some(answer) = asked.next().await {
            let Ok((node, told)) = answer else { continue };
            is_heard |= told.is_some();
            if let Some(rules) = told.and_then(|told| Rules::of(&told, action)) {
                return Some((node, rules));
            }
        }
        None
    });
    let found = found.await.ok().flatten();
    match found.is_some() || is_heard {
        true => Ok(found),
        false => {
            let what = format!("none of {count} nodes says how `{action}` runs");
            Err(CliError::new(Code::AGENT_UNREACHABLE, what).hint("nothing was begun"))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future;

    use super::*;
    use crate::config::Effective;
    use crate::domain::id::Digest;
    use crate::domain::origin::{Layer, Origin};

    #[tokio::test(start_paused = true)]
    async fn one_node_that_is_stuck_or_has_an_older_release_hides_from_nobody_how_an_action_runs() {
        let nodes: Vec<NodeId> = (1..=20).map(|it| format!("n{it}").parse().unwrap()).collect();
        let action: ActionName = "reindex".parse().unwrap();
        let told = |keys: &[(&str, &str)]| {
            let at = Origin::line(Layer::Host, "web.toml".to_owned(), 3);
            let value = |value: &str| Effective {
                value: value.to_owned(),
                origin: at.clone(),
                hides: Vec::new(),
            };
            let keys = keys.iter().map(|(key, it)| ((*key).to_owned(), value(it)));
            Some(Told::new(Digest([1; 32]), keys.collect()))
        };
        let with =
            [("action.reindex.run_on", "\"one\""), ("action.reindex.max_parallel", "[1, \"25%\"]")];
        let asked = nodes.iter().map(async |node: &NodeId| {
            let told = match node.as_str() {
                "n1" | "n2" => future::pending().await,
                "n3" => told(&[]),
                "n20" => told(&with),
                _ => None,
            };
            (node.clone(), told)
        });
        let (node, rules) = rules(&action, asked.collect()).await.unwrap().unwrap();
        assert!(node.as_str() == "n20" && rules.is_for_one, "{node} {rules:?}");
        let each = |told: Option<Told>| {
            nodes.iter().map(|node| future::ready((node.clone(), told.clone()))).collect()
        };
        let old = super::rules(&action, each(told(&[]))).await;
        assert_eq!(old.unwrap(), None, "each of them says that it has no such action");
        let silent = super::rules(&action, each(None)).await.unwrap_err();
        assert_eq!(silent.code, Code::AGENT_UNREACHABLE);
        let stuck = super::rules(&action, vec![future::pending(); 2]).await.unwrap_err();
        assert_eq!(stuck.code, Code::AGENT_UNREACHABLE);
    }
}
