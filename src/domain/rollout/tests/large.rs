//! A fleet of ten thousand: what a report costs must not grow with it, or these tests take minutes in place of seconds.

use super::super::view::Record;
use super::*;

const NODES: usize = 10_000;

struct Large {
    story: Story,
    now: UnixMicros,
}

impl Large {
    fn open(parameters: Parameters) -> Self {
        let plan = plan(NODES, parameters);
        let healthy = Observed { release: plan.back_to, healthy: true };
        let before = plan.targets().map(|node| (node.clone(), healthy.clone())).collect();
        let opening = Opening {
            plan,
            by: None,
            reason: String::new(),
            origins: BTreeMap::new(),
            before,
            controller: node("c1"),
            term: 1,
        };
        let mut story = Story::default();
        for event in Rollout::open(opening, BEGIN) {
            story.take(Record { id: id(story.records().len()), at: BEGIN, event });
        }
        Self { story, now: BEGIN }
    }

    fn state(&self) -> &Rollout {
        self.story.state().unwrap()
    }

    fn input(&mut self, input: &Input) {
        let mut at = self.story.records().len();
        let written = |_: &RolloutEvent| {
            at += 1;
            Some(id(at))
        };
        self.story.decide(self.now, input, written).unwrap();
    }

    fn says(&mut self, node: &NodeId, report: NodeReport) {
        self.input(&Input::Node { node: node.clone(), event: None, report });
    }

    /// Returns the nodes that have an order and no verdict.
    fn under_way(&self) -> Vec<NodeId> {
        let is = |node: &&NodeId| self.state().node(node).is_some_and(NodeState::is_under_way);
        self.state().plan().targets().filter(is).cloned().collect()
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.input(&Input::Tick);
    }

    fn the_log_is_the_state(&self) {
        let events = self.story.records().iter().map(|record| &record.event);
        assert_eq!(Rollout::replay(events).unwrap().as_ref(), Some(self.state()));
    }
}

#[test]
fn ten_thousand_nodes_are_led_to_the_end() {
    let mut fleet = Large::open(by_name());
    for _ in 0..20 {
        for node in fleet.under_way() {
            fleet.says(&node, NodeReport::Applied { generation: GENERATION });
            fleet.says(&node, NodeReport::Unreachable);
            fleet.says(&node, NodeReport::Seen);
            fleet.says(&node, healthy());
        }
        fleet.pass(by_name().bake_ms);
    }
    assert_eq!(fleet.state().verdict(), Some(Verdict::Succeeded));
    fleet.the_log_is_the_state();
}

#[test]
fn ten_thousand_nodes_that_hang_are_found_by_their_deadlines_and_the_others_go_back() {
    let all = Amount::Percent(100);
    let parameters = Parameters { canary: Amount::Count(0), max_parallel: vec![all], ..by_name() };
    let mut fleet = Large::open(parameters);
    for node in fleet.under_way() {
        fleet.says(&node, NodeReport::Applied { generation: GENERATION });
    }
    fleet.pass(by_name().healthy_deadline_ms + VERDICT_SLACK_MS);
    while fleet.state().verdict().is_none() {
        for node in fleet.under_way() {
            fleet.says(&node, returned());
        }
        fleet.pass(1_000);
    }
    assert_eq!(fleet.state().verdict(), Some(Verdict::RolledBack));
    fleet.the_log_is_the_state();
}
