//! The keeper of an emulated node: whatever is asked of it has happened at once.

use crate::domain::effect::{Act, Operation};
use crate::domain::event::{Exit, Usage};
use crate::domain::id::{InstanceId, RunId};
use crate::domain::input::{ActionEnd, Delivery, Ended, Input};
use crate::domain::node::Node;

/// Returns what a keeper would say about an act, in its order; nothing for one that no keeper is asked for.
pub(super) fn serve(node: &Node, act: &Act) -> Vec<Input> {
    match act {
        Act::Spawn { instance, run, spec } if node.awaits_start(instance, *run) => {
            let (instance, run, spec) = (instance.clone(), *run, *spec);
            let pid = pid_of(run);
            let started = Input::Started {
                instance: instance.clone(),
                run,
                pid,
                pidfd_inode: u64::from(pid),
                spec,
            };
            vec![started, Input::Ready { instance, run, how: "emulated".to_owned() }]
        }
        Act::Signal { instance, operation: Operation::Wish(intent, _), .. } => {
            let (intent, instance) = (*intent, instance.clone());
            vec![Input::SignalDelivered { intent, instance, delivery: Delivery::Delivered }]
        }
        Act::Signal { instance, run, signal, .. } => vec![ended(instance, *run, *signal)],
        Act::KillTree { instance, run } => vec![ended(instance, *run, 9)],
        Act::RunHook { instance, run, hook, .. } => {
            let (instance, run, hook) = (instance.clone(), *run, *hook);
            vec![Input::HookEnded { instance, run, hook, exit: Exit::Code(0) }]
        }
        Act::StartAction { intent, .. } => {
            let end = ActionEnd::Exited { exit: Exit::Code(0), ran_ms: 0 };
            let intent = *intent;
            vec![Input::ActionStarted { intent }, Input::ActionEnded { intent, end }]
        }
        Act::ProveRelease { service, generation, since, .. } => {
            // There is no program to read.
            let (service, generation, since) = (service.clone(), *generation, *since);
            vec![Input::Proved { service, generation, since, running: Ok(None) }]
        }
        Act::Spawn { .. }
        | Act::Acknowledge { .. }
        | Act::SetTimer { .. }
        | Act::CancelTimer { .. }
        | Act::KeepReady { .. }
        | Act::AcknowledgeAction { .. }
        | Act::KillAction { .. }
        | Act::LoadSpecs { .. }
        | Act::Stage { .. }
        | Act::PruneReleases { .. }
        | Act::Answer { .. }
        | Act::StopAgent { .. } => Vec::new(),
    }
}

fn ended(instance: &InstanceId, run: RunId, signal: i32) -> Input {
    let ended = Ended {
        exit: Exit::Signal { signal, core_dumped: false },
        usage: Usage::default(),
        oom_killed: false,
        ran_ms: 0,
        tree_empty: true,
        tail: None,
    };
    Input::Exited { instance: instance.clone(), run, pid: pid_of(run), ended }
}

/// Returns a number that no other run of the instance has.
fn pid_of(run: RunId) -> u32 {
    u32::try_from(run.0 % 4_000_000).expect("below 2^32") + 100
}
