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
