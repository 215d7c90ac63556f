//! Garbage on the bus, by the hundred thousand: no log grows, no memory grows, and who may command still can.

mod heavy {
    use std::cell::Cell;
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use smgr::domain::policy::Kind;
    use smgr::wire::envelope::seal;
    use smgr::wire::key::Signer;

    use crate::hostile::node::{Came, Node, count};
    use crate::support::block_on;

    /// How much more a part may hold afterwards, in KiB, however long the flood: the uplink's queue of 256 envelopes,
    /// what one read of its socket brings, and what the allocator keeps of both.
    const GROWTH_KIB_MAX: u64 = 64 * 1024;

    /// How many it is when nobody says otherwise.
    const MESSAGES: usize = 1_000_000;

    /// How often one who may command has to ask in the middle of a flood, at most.
    const TRIES_MAX: usize = 30;

    #[test]
    fn garbage_on_the_bus_changes_no_log_and_keeps_nobody_from_being_heard() {
        let told = std::env::var("SMGR_FLOOD").ok().and_then(|text| text.parse().ok());
        let messages: usize = told.unwrap_or(MESSAGES);
        let node = Node::up();
        let garbage = garbage(&node);
        block_on(async {
            let alice = node.dial(&node.owner.operator).await;
            let mallory = node.dial(&"mallory".parse().unwrap()).await;
            let parts = ["keeper", "agent", "uplink"];
            let before = (node.state(), log_bytes(&node), parts.map(|part| rss_kib(&node, part)));
            let began = Instant::now();
            flood(&node, &mallory, &garbage, |sent| sent < messages / 2).await;
            // Right behind half of it, on a connection of its own, and the flood does not end before there is an answer.
            let good = node.signed(&node.intent(count()));
            let heard = Cell::new(false);
            let (came, sent) = tokio::join!(
                async {
                    let came = until_it_is_heard(&node, &alice, &good).await;
                    heard.set(true);
                    came
                },
                flood(&node, &mallory, &garbage, |sent| sent < messages / 2 || !heard.get()),
            );
            mallory.flush().await.unwrap();
            let (all, took) = (messages / 2 + sent, began.elapsed());
            assert!(matches!(came, Came::Outcome(_)), "{came:?}");
            assert_eq!(node.counted(), 1);
            // The server has all of the flood, and hands it on in order: what is asked now stands behind it.
            until_it_is_heard(&node, &alice, &good).await;

            let of_the_command: Vec<_> = node
                .events_after(&before.0)
                .iter()
                .map(|event| event["type"].as_str().unwrap().to_owned())
                .collect();
            let expected = ["intent.accepted", "action.started", "action.ended", "intent.executed"];
            assert_eq!(of_the_command, expected);
            let grown = log_bytes(&node).saturating_sub(before.1);
            assert!(grown < 1 << 20, "the log grew by {grown} bytes for one command");
            for (part, had) in parts.into_iter().zip(before.2) {
                let has = rss_kib(&node, part);
                println!("{part}: {had} KiB before, {has} KiB after");
                assert!(has < had + GROWTH_KIB_MAX, "{part} grew from {had} to {has} KiB");
            }
            assert_eq!(node.machine.json(&["replay"])["live"]["equal"], true);
            println!(
                "flood: {all} messages of garbage in {took:.1?} left no row in the log; the one command among them ran once \
                 (4 rows): pass"
            );
        });
    }

    /// Sends the same wish again until there is an outcome: the bus may drop some of them, and not all.
    async fn until_it_is_heard(node: &Node, bus: &smgr::bus::Connection, wish: &[u8]) -> Came {
        for tried in 1..=TRIES_MAX {
            let came = node.over_the_bus(bus, wish);
            if let Ok(came) = tokio::time::timeout(std::time::Duration::from_secs(1), came).await {
                println!("heard at try {tried}");
                return came;
            }
        }
        panic!("nobody heard one who may command in {TRIES_MAX} tries");
    }

    /// Sends garbage for as long as `more` says of the number that was sent; returns that number.
    async fn flood(
        node: &Node,
        bus: &smgr::bus::Connection,
        garbage: &[Vec<u8>],
        more: impl Fn(usize) -> bool,
    ) -> usize {
        let mut number = 0;
        while more(number) {
            let mut bytes = garbage[number % garbage.len()].clone();
            // No two are the same.
            if let Some(place) = bytes.len().checked_sub(9) {
                bytes[place..place + 8].copy_from_slice(&(number as u64).to_be_bytes());
            }
            bus.publish(&node.call(), bytes).await.unwrap();
            if number % 500 == 0 {
                bus.flush().await.unwrap();
            }
            number += 1;
        }
        number
    }

    /// What a stranger can make: noise, envelopes of his own, and envelopes of ours that he altered.
    fn garbage(node: &Node) -> Vec<Vec<u8>> {
        let good = node.signed(&node.intent(count()));
        let mut noise = vec![0; 700];
        getrandom::fill(&mut noise).unwrap();
        vec![
            noise,
            vec![0x91; 300],
            good.clone(),
            seal(Kind::Intent, b"\x80nothing at all", &Signer::from_seed(&[9; 32])),
            seal(Kind::Query, b"\x80nothing at all", &Signer::from_seed(&[9; 32])),
            seal(Kind::Order, &[0; 40_000], &Signer::from_seed(&[9; 32])),
            [good, vec![0; 64]].concat(),
        ]
    }

    fn rss_kib(node: &Node, part: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", node.machine.part(part)));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn log_bytes(node: &Node) -> u64 {
        fn of(folder: &Path) -> u64 {
            let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
            entries
                .filter(|entry| entry.file_name() != "reserve")
                .map(|entry| match entry.file_type().unwrap().is_dir() {
                    true => of(&entry.path()),
                    false => entry.metadata().unwrap().len(),
                })
                .sum()
        }
        of(&node.machine.state().join("log"))
    }
}
