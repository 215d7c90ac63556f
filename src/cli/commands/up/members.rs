//! Who belongs to a fleet, put into force: the trust of each member on this machine, and what the bus lets each user say.

use super::bus_user;
use crate::agent::setup::BusSetup;
use crate::cli::context::{Context, user_name};
use crate::cli::error::CliError;
use crate::cli::fleet::Fleet;
use crate::cli::nats::{self, Members, Other, UserKey};
use crate::cli::time;
use crate::cli::wish::from_keys;
use crate::domain::code::Code;
use crate::head::enrol::{Enrolment, Member, enrol};

/// Returns the users of the bus of this machine, each with its public key.
///
/// # Errors
/// When a key cannot be read.
pub(in crate::cli::commands) fn users_of_the_bus(
    context: &Context,
    fleet: &Fleet,
) -> Result<Vec<(String, String)>, CliError> {
    let nodes = fleet.node_members(context).into_iter().map(|it| (it, "node.nk"));
    let controllers = fleet.controller_members(context).into_iter().map(|it| (it, "controller.nk"));
    let operator = nats::public_nkey(&context.folder.keys().join("operator.nk"))?;
    let mut users = vec![(user_name().to_string(), operator)];
    for (member, key) in nodes.chain(controllers) {
        let key = nats::public_nkey(&member.folder.keys().join(key))?;
        users.push((member.name.to_string(), key));
    }
    users.extend(fleet.machines.iter().map(|(name, it)| (name.to_string(), it.bus.clone())));
    Ok(users)
}

/// Makes the keys of the members on this machine, the trust envelope that names everybody, and the set-up of the bus, or
/// takes what is there.
///
/// # Errors
/// When there is no server for the bus, or the disk refuses.
pub(in crate::cli::commands) fn enrol_all(
    context: &Context,
    fleet: &Fleet,
) -> Result<(Enrolment, BusSetup), CliError> {
    let Some(found) = nats::find()? else {
        return Err(CliError::new(Code::NO_NATS_SERVER, "a fleet needs a bus, and no nats-server was found")
            .hint("install nats-server 2.14.5 or later, or name one: SMGR_NATS_SERVER=/path/to/nats-server"));
    };
    let enrolment = enrolment(context, fleet)?;
    let enrolled = enrol(&enrolment).map_err(|error| from_keys(&error))?;
    let here = |member: &Member, key: &str, is_controller| Other {
        name: member.name.clone(),
        nkey: UserKey::Seed(member.folder.keys().join(key)),
        is_controller,
    };
    let nodes = &enrolment.nodes;
    let mut members = Members::of(enrolment.fleet.clone(), nodes[0].name.clone(), &enrolled.ring);
    members.listen = fleet.listen;
    members.encrypted = fleet.tls.then(|| fleet.names.clone());
    members.others.extend(nodes[1..].iter().map(|it| here(it, "node.nk", false)));
    members.others.extend(enrolment.controllers.iter().map(|it| here(it, "controller.nk", true)));
    members.others.extend(fleet.machines.iter().map(|(name, machine)| Other {
        name: name.clone(),
        nkey: UserKey::Public(machine.bus.clone()),
        is_controller: false,
    }));
    let bus = context.setup()?.and_then(|setup| setup.bus);
    let user = bus_user(context, &found);
    let bus = nats::prepare(&context.folder, &found, bus.as_ref(), &members, user)?;
    Ok((enrolment, bus))
}

/// Returns who belongs to a fleet, for the trust envelope.
///
/// # Errors
/// When the set-up of this machine cannot be read.
pub(super) fn enrolment(context: &Context, fleet: &Fleet) -> Result<Enrolment, CliError> {
    let name = "local".parse().expect("a constant that is a name");
    Ok(Enrolment {
        fleet: context.setup()?.map_or(name, |setup| setup.fleet),
        operator: user_name(),
        nodes: fleet.node_members(context),
        labels: fleet.labels.clone(),
        machines: fleet.machines.clone(),
        controllers: fleet.controller_members(context),
        jobs: fleet.jobs.clone(),
        now: time::now(),
    })
}
