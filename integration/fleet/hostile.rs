//! What anybody may publish on the bus is looked at before it counts.

use smgr::bus::{BusOptions, Connection, Credentials};
use smgr::domain::id::{FleetId, NodeId};
use smgr::domain::policy::{KeyClass, Kind};
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::key::Signer;
use smgr::wire::payload::EventRecord;
use smgr::wire::subject::{InboxPrefix, Scope, Subject};

use super::Fleet;
use crate::support::block_on;
use crate::support::wait::wait_until;

#[test]
fn an_event_by_a_stranger_or_in_anothers_name_is_dropped_and_counted() {
    let fleet = Fleet::of(2);
    fleet.all_arrives(&["n1", "n2"]);
    let before = fleet.arrivals();
    // An event that is fetched may come live as well: some repeats are nobody's fault.
    let repeats = |fleet: &Fleet| fleet.status()["intake"]["repeats"].as_u64().unwrap();
    let repeats_before = repeats(&fleet);
    let n1 = StateFolder::new(fleet.folder("n1"));
    let n2 = StateFolder::new(fleet.folder("n2"));
    let row = smgr::store::LogReader::new(n1.log());
    let mut genuine = Vec::new();
    row.rows(None, |_, row| {
        genuine = row.to_vec();
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    let sealed = envelope::read(&genuine, genuine.len()).unwrap();
    let mut record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
    record.seq.0 += 1;
    let forged = codec::encode(&record);
    let stranger = envelope::seal(Kind::Event, &forged, &Signer::from_seed(&[7; 32]));
    let neighbour = load_key(&KeyName::Node.path(&n2)).unwrap();
    let foreign = envelope::seal(Kind::Event, &forged, &neighbour);

    let (_, ring) = load_trust(&n1).unwrap();
    let people = ring.iter().map(|(_, holder)| holder);
    let person = people.into_iter().find(|holder| holder.class == KeyClass::Human).unwrap();
    let setup = smgr::agent::setup::NodeSetup::read(&n1).unwrap().bus.unwrap();
    let mut options = BusOptions::new(setup.urls, InboxPrefix(person.name.clone()), "stranger");
    options.credentials = Credentials::read(setup.operator_nkey.unwrap()).unwrap();
    block_on(async {
        let bus = Connection::dial(&options).await.unwrap();
        let (fleet, origin): (FleetId, NodeId) = ("local".parse().unwrap(), "n1".parse().unwrap());
        let kind = "instance-started".parse().unwrap();
        let subject = Subject::Event { fleet, origin, scope: Scope::Node, kind };
        for message in [stranger, foreign, genuine, b"\x95\x01 no envelope".to_vec()] {
            bus.publish(&subject, message).await.unwrap();
        }
        // Whatever was said is heard before the connection goes.
        drop(bus.flush().await);
    });
    wait_until("it is counted", || {
        let intake = fleet.status()["intake"].clone();
        intake["unsigned"] == 2 && intake["foreign"] == 1 && repeats(&fleet) > repeats_before
    });
    let after = fleet.arrivals();
    for node in ["n1", "n2"] {
        let (before, after) = (&before[node], &after[node]);
        assert_eq!(before[..], after[..before.len()]);
    }
    fleet.all_arrives(&["n1", "n2"]);
}
