use proptest::prelude::*;

use super::*;

fn token<T: FromStr<Err: fmt::Debug> + fmt::Debug>() -> impl Strategy<Value = T> {
    // Few and short names, so that filters and subjects meet.
    prop_oneof!["[ab]", "[a-z0-9-]{1,63}", Just("all".to_owned())]
        .prop_map(|text| text.parse().unwrap())
}

fn callee() -> impl Strategy<Value = Callee> {
    token::<NodeId>().prop_map(|node| Callee::node(node).unwrap_or(Callee::EVERY_NODE))
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Node), token().prop_map(Scope::Service)]
}

fn pick<T: Clone + fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Pick<T>> {
    prop::option::of(of).prop_map(|only| only.map_or(Pick::Any, Pick::Only))
}

fn subject() -> impl Strategy<Value = Subject> {
    let f = token::<FleetId>;
    let n = token::<NodeId>;
    prop_oneof![
        (f(), callee()).prop_map(|(fleet, to)| Subject::Call { fleet, to }),
        (f(), n(), token()).prop_map(|(fleet, node, service)| Subject::Order {
            fleet,
            node,
            service
        }),
        (f(), token()).prop_map(|(fleet, principal)| Subject::Request { fleet, principal }),
        (f(), n(), scope(), token()).prop_map(|(fleet, origin, scope, kind)| {
            Subject::Event { fleet, origin, scope, kind }
        }),
        (f(), n()).prop_map(|(fleet, origin)| Subject::Beat { fleet, origin }),
        (f(), n()).prop_map(|(fleet, origin)| Subject::Log { fleet, origin }),
        (f(), n()).prop_map(|(fleet, origin)| Subject::Copy { fleet, origin }),
        (f(), n()).prop_map(|(fleet, origin)| Subject::Receipt { fleet, origin }),
        (f(), token()).prop_map(|(fleet, document)| Subject::Trust { fleet, document }),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let f = token::<FleetId>;
    let n = token::<NodeId>;
    prop_oneof![
        (f(), callee()).prop_map(|(fleet, to)| Filter::Calls { fleet, to }),
        (f(), n()).prop_map(|(fleet, node)| Filter::Orders { fleet, node }),
        f().prop_map(|fleet| Filter::Requests { fleet }),
        (f(), pick(n()), pick(scope()), pick(token()))
            .prop_map(|(fleet, origin, scope, kind)| Filter::Events { fleet, origin, scope, kind }),
        (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Beats { fleet, origin }),
        (f(), n()).prop_map(|(fleet, origin)| Filter::Log { fleet, origin }),
        (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Copies { fleet, origin }),
        (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Receipts { fleet, origin }),
        f().prop_map(|fleet| Filter::Trust { fleet }),
    ]
}

/// What the server does with `*`.
fn server_matches(filter: &str, subject: &str) -> bool {
    let filter: Vec<_> = filter.split('.').collect();
    let subject: Vec<_> = subject.split('.').collect();
    filter.len() == subject.len()
        && filter.iter().zip(subject).all(|(want, token)| *want == "*" || *want == token)
}

proptest! {
    #[test]
    fn a_subject_reads_what_it_writes(subject in subject()) {
        prop_assert_eq!(subject.to_string().parse(), Ok(subject));
    }

    #[test]
    fn a_filter_reads_what_it_writes(filter in filter()) {
        prop_assert_eq!(filter.to_string().parse(), Ok(filter));
    }

    #[test]
    fn a_filter_admits_what_the_server_delivers(filter in filter(), subject in subject()) {
        let delivered = server_matches(&filter.to_string(), &subject.to_string());
        prop_assert_eq!(filter.matches(&subject), delivered);
    }

    #[test]
    fn any_text_is_read_or_refused_and_never_read_as_something_else(text in "[a-z.*>_1]{0,40}") {
        if let Ok(subject) = text.parse::<Subject>() {
            prop_assert_eq!(subject.to_string(), text);
        }
    }
}

#[test]
fn the_subjects_are_those_of_the_design() {
    for text in [
        "smgr.v1.acme.call.n1",
        "smgr.v1.acme.call.all",
        "smgr.v1.acme.order.n1.web",
        "smgr.v1.acme.request.alice",
        "smgr.v1.acme.event.n1.web.instance-started",
        "smgr.v1.acme.event.n1._.log-opened",
        "smgr.v1.acme.beat.n1",
        "smgr.v1.acme.log.n1",
        "smgr.v1.acme.copy.n1",
        "smgr.v1.acme.receipt.n1",
        "smgr.v1.acme.trust.bundle",
    ] {
        assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
    }
}

#[test]
fn a_subject_of_another_shape_is_refused() {
    for text in [
        "",
        "smgr",
        "smgr.v1",
        "smgr.v1.acme",
        "smgr.v2.acme.call.n1",
        "smgr.v1.acme.call",
        "smgr.v1.acme.call.n1.x",
        "smgr.v1.acme.call.*",
        "smgr.v1.acme.call.>",
        "smgr.v1.acme.call.",
        "smgr.v1.acme.call.N1",
        "smgr.v1.*.call.n1",
        "smgr.v1.acme.order.n1._",
        "smgr.v1.acme.event.n1.web.a.b.c.d.e.f",
    ] {
        assert!(text.parse::<Subject>().is_err(), "{text:?}");
    }
}

#[test]
fn no_node_may_be_called_all() {
    assert_eq!(Callee::node("all".parse().unwrap()), Err(ReservedName));
    assert_eq!("all".parse(), Ok(Callee::EVERY_NODE));
}

#[test]
fn a_dot_in_an_event_type_does_not_become_a_level_of_the_subject() {
    assert_eq!(event_kind("instance.oom_killed").unwrap().as_str(), "instance-oom-killed");
}

#[test]
fn an_answer_goes_to_the_inbox_of_a_principal_and_nowhere_else() {
    let inbox: Inbox = "_INBOX.alice.qAbZ09.x1".parse().unwrap();
    assert_eq!(inbox.to_string(), "_INBOX.alice.qAbZ09.x1");
    assert!(InboxPrefix("alice".parse().unwrap()).owns(&inbox));
    assert!(!InboxPrefix("ali".parse().unwrap()).owns(&inbox));
    let long = format!("_INBOX.alice.{}", "x".repeat(200));
    for text in [
        "smgr.v1.acme.call.n2",
        "_INBOX.alice",
        "_INBOX.alice.",
        "_INBOX.alice.*",
        "_INBOX.alice.>",
        "_INBOX.*.x",
        "_INBOX.alice.x\r\nPUB",
        "$JS.API.STREAM.DELETE.X",
        long.as_str(),
    ] {
        assert!(text.parse::<Inbox>().is_err(), "{text:?}");
    }
}
