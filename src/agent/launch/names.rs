//! How runs and slots are called where the keeper sees them.

use crate::domain::id::{InstanceId, RunId};
use crate::ipc::keeper::{RunName, SlotName};

/// Returns the name of a run: `web.0.17`.
pub fn run_name(instance: &InstanceId, run: RunId) -> RunName {
    let name = format!("{}.{}.{run}", instance.service, instance.index);
    name.parse().expect("a service's name and two numbers fit a run's name")
}

/// Returns the name of a slot: `web.0`.
pub fn slot_name(instance: &InstanceId) -> SlotName {
    let name = format!("{}.{}", instance.service, instance.index);
    name.parse().expect("a service's name and a number fit a slot's name")
}

/// Returns the name of a process beside a run: `web.0.17.reload.3`.
///
/// `number` is never used twice for the same run.
pub fn helper_name(instance: &InstanceId, run: RunId, what: HelperKind, number: u64) -> RunName {
    let kind = match what {
        HelperKind::Action => "action",
        HelperKind::Reload => "reload",
        HelperKind::BeforeStop => "stop",
    };
    let name = format!("{}.{}.{run}.{kind}.{number}", instance.service, instance.index);
    name.parse().expect("a service's name, a word and three numbers fit a run's name")
}

/// What a process beside a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelperKind {
    /// A declared action.
    Action,
    /// `reload.by = "exec"`.
    Reload,
    /// `stop.pre`.
    BeforeStop,
}

/// Reads the name of a run, or of a helper of it, again; `None` for a name that is not ours.
pub fn instance_and_run(name: &RunName) -> Option<(InstanceId, RunId)> {
    let mut parts = name.as_str().split('.');
    let service = parts.next()?.parse().ok()?;
    let index = parts.next()?.parse().ok()?;
    let run = parts.next()?.parse().ok()?;
    Some((InstanceId { service, index }, RunId(run)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_run_tells_which_it_is() {
        let instance = InstanceId { service: "a".repeat(63).parse().unwrap(), index: u16::MAX };
        let longest = helper_name(&instance, RunId(u64::MAX), HelperKind::Action, u64::MAX);
        assert_eq!(instance_and_run(&longest), Some((instance.clone(), RunId(u64::MAX))));
        let run = run_name(&instance, RunId(17));
        assert_eq!(instance_and_run(&run), Some((instance, RunId(17))));
        assert_eq!(instance_and_run(&"web.0".parse().unwrap()), None);
    }
}
