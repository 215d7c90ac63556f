//! A fleet of plain values under two controllers: orders and reports are lost, doubled and mixed up, controllers die
//! in mid-wave, two of them lead at once, nodes are cut off; time is a number.
//!
//! A seed makes a hostile part and then a calm one, in which every rollout must come to its end.

mod agent;

use std::collections::{BTreeMap, BTreeSet};

use self::agent::{Agent, Fate, Order};
use super::tests::{GENERATION, NEW, OLD, first, names, node, plan_of};
use super::*;
use crate::domain::id::{IntentId, NodeId};
use crate::domain::sim::rng::Rng;
use crate::domain::time::UnixMicros;

const STEPS: usize = 160;
const NODES: usize = 7;

/// What keeps the invariants. With any of these off, some seed must fail.
#[derive(Clone, Copy, Debug)]
struct Switches {
    /// A node takes a step once, however often it is ordered.
    dedup: bool,
    /// After the way back a node takes no step forward of the same wish.
    return_wins: bool,
    /// A node demands the canary's signed results; without them a hostile controller orders what it likes.
    canary_proofs: bool,
    /// A node does not go first because a hostile controller says so.
    own_turn: bool,
    /// A new leader puts off the deadlines that passed while nobody led.
    grace: bool,
    /// A failure is heard as what it is.
    hears_failures: bool,
}

impl Switches {
    const ON: Self = Self {
        dedup: true,
        return_wins: true,
        canary_proofs: true,
        own_turn: true,
        grace: true,
        hears_failures: true,
    };
}

/// What a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Nodes fail, hang and are cut off; people command.
    Rough,
    /// Nothing is wrong with any node: only controllers die and messages get lost.
    OnlyControllers,
    /// The new leader lacks the last facts of the old one.
    Lag,
    /// The old leader does not know that it is none.
    TwoLeaders,
}

struct World {
    now: UnixMicros,
    rng: Rng,
    scene: Scene,
    switches: Switches,
    agents: BTreeMap<NodeId, Agent>,
    /// The nodes that take the release without the word of another.
    first: BTreeSet<NodeId>,
    /// Whether those do as well that have nothing of the service.
    newcomers: bool,
    orders: Vec<(NodeId, Order)>,
    reports: Vec<(NodeId, NodeReport)>,
    /// The leader's durable log, and the leader itself while one lives.
    log: Vec<RolloutEvent>,
    leader: Option<Rollout>,
    zombie: Option<Rollout>,
    term: u64,
}

fn parameters(rng: &mut Rng, scene: Scene) -> Parameters {
    let on_failure = match rng.below(6) {
        0 => OnFailure::Stop,
        1 => OnFailure::Pause,
        _ => OnFailure::Rollback,
    };
    let on_unreachable = match rng.below(4) {
        0 => OnUnreachable::Skip,
        1 => OnUnreachable::Fail,
        _ => OnUnreachable::Wait,
    };
    let calm = scene == Scene::OnlyControllers;
    Parameters {
        canary: Amount::Count(rng.below(3) as u32),
        max_parallel: vec![Amount::Count(1 + rng.below(3) as u32), Amount::Percent(40)],
        max_failures: Amount::Count(rng.below(3) as u32),
        max_unreachable: Amount::Count(rng.below(2) as u32),
        on_failure: if calm { OnFailure::Rollback } else { on_failure },
        on_unreachable,
        auto_promote: calm || rng.below(4) > 0,
        require_approval: !calm && rng.below(6) == 0,
        bake_ms: rng.below(3) * 20_000,
        may_roll_back: rng.below(8) > 0,
        ..Parameters::default()
    }
}

impl World {
    fn new(seed: u64, switches: Switches) -> Self {
        let mut rng = Rng::new(seed);
        let scene = match seed % 4 {
            0 => Scene::OnlyControllers,
            1 => Scene::Lag,
            2 => Scene::TwoLeaders,
            _ => Scene::Rough,
        };
        let parameters = parameters(&mut rng, scene);
        let back_to = (rng.below(8) > 0).then_some(OLD);
        let emergency = (rng.below(10) == 0).then_some("down");
        let first = first(NODES, back_to, &parameters).into_iter().collect();
        let newcomers = newcomers_go_first(back_to, &parameters);
        // What was signed says that there was nothing; a controller that lied about it finds the service on some.
        let is_new = newcomers && rng.below(2) == 0;
        let plan = plan_of(NODES, (back_to, is_new), emergency, parameters);
        let calm = scene == Scene::OnlyControllers;
        let agents = names(NODES).into_iter().map(|name| {
            let fate = if calm { Fate::Good } else { Fate::draw(&mut rng) };
            let has_nothing = is_new || newcomers && rng.below(3) == 0;
            (name, Agent::new(fate, has_nothing))
        });
        let agents = agents.collect();
        let now = UnixMicros(1_795_000_000_000_000);
        let healthy = |well| Observed { release: back_to, healthy: well };
        let well: Vec<bool> = (0..NODES).map(|_| calm || rng.below(6) > 0).collect();
        let before = plan.targets().cloned().zip(well.into_iter().map(healthy)).collect();
        let opening = Opening {
            plan,
            by: None,
            reason: String::new(),
            origins: BTreeMap::new(),
            before,
            controller: node("c1"),
            term: 1,
        };
        let log = Rollout::open(opening, now);
        let leader = Rollout::replay(&log).unwrap();
        let (orders, reports) = (Vec::new(), Vec::new());
        Self {
            now,
            rng,
            scene,
            switches,
            agents,
            first,
            newcomers,
            orders,
            reports,
            log,
            leader,
            zombie: None,
            term: 1,
        }
    }

    fn input(&mut self, input: &Input) -> Result<(), String> {
        let Some(leader) = &mut self.leader else { return Ok(()) };
        let Ok(events) = leader.decide(self.now, input) else { return Ok(()) };
        for event in &events {
            leader.evolve(event).map_err(|error| error.to_string())?;
        }
        let was_ended = matches!(self.log.last(), Some(RolloutEvent::Ended(_)));
        if was_ended && !events.is_empty() {
            return Err("a terminal state is not final".to_owned());
        }
        self.log.extend(events);
        Ok(())
    }

    fn report(&mut self, node: &NodeId, report: NodeReport) -> Result<(), String> {
        let report = match (self.switches.hears_failures, report) {
            (false, NodeReport::Failed { .. }) => super::tests::healthy(),
            (false, NodeReport::Returned { .. }) => NodeReport::Seen,
            (_, report) => report,
        };
        let input = Input::Node { node: node.clone(), event: None, report };
        if let Some(zombie) = &mut self.zombie {
            let events = zombie.decide(self.now, &input).unwrap_or_default();
            events.iter().try_for_each(|event| zombie.evolve(event)).map_err(|e| e.to_string())?;
        }
        self.input(&input)
    }

    /// Puts what should be under way on the bus again.
    fn resend(&mut self) -> Result<(), String> {
        let leaders = [(&self.leader, self.term), (&self.zombie, self.term.saturating_sub(1))];
        for (leader, term) in leaders {
            let Some(leader) = leader else { continue };
            let canary = leader.plan().canary();
            let canary_held = canary.iter().all(|node| self.agents[node].was_healthy());
            for effect in leader.effects() {
                let Effect::Order { node, step, wave } = effect else { continue };
                if step == Step::Apply && wave > 1 && !canary_held {
                    return Err(format!("the canary was skipped for {node}"));
                }
                let is_hurried = leader.plan().emergency.is_some();
                let is_taken = match wave {
                    1 => self.goes_first(&node),
                    _ => self.has_word(&node),
                };
                let is_repeat = self.agents[&node].applied > 0;
                if step == Step::Apply && !is_taken && !is_hurried && !is_repeat {
                    return Err(format!("{node} would refuse an honest order of wave {wave}"));
                }
                let proven = is_hurried || canary_held && self.has_word(&node);
                self.orders.push((node, Order { step, term, proven }));
            }
        }
        if !self.switches.canary_proofs || !self.switches.own_turn {
            // A hostile controller, held back by nothing but the nodes.
            let to = names(NODES)[self.rng.below(NODES as u64) as usize].clone();
            self.orders.push((to, Order { step: Step::Apply, term: self.term, proven: false }));
        }
        Ok(())
    }

    fn deliver_order(&mut self, at: usize) -> Result<(), String> {
        if self.orders.is_empty() {
            return Ok(());
        }
        let at = at % self.orders.len();
        let (node, order) = self.orders.swap_remove(at);
        let (is_first, is_hurried) = (self.goes_first(&node), self.plan().emergency.is_some());
        let canary = self.plan().canary();
        let canary_held = canary.iter().all(|node| self.agents[node].was_healthy());
        let is_proved = is_first || is_hurried || canary_held && self.has_word(&node);
        let agent = self.agents.get_mut(&node).expect("enrolled");
        if agent.away {
            return Ok(());
        }
        let before = agent.applied;
        // A hostile controller says of every order that it is of the first wave.
        let proven = order.proven || is_first || !self.switches.own_turn;
        agent.take(self.now, &Order { proven, ..order }, self.switches);
        if agent.applied > before && !is_proved {
            return Err(format!("{node} changed before another one was healthy"));
        }
        Ok(())
    }

    /// Says whether a node takes the release without the word of another.
    fn goes_first(&self, node: &NodeId) -> bool {
        self.first.contains(node) || self.newcomers && self.agents[node].has_nothing
    }

    /// Says whether another node was healthy on the release.
    fn has_word(&self, node: &NodeId) -> bool {
        let mut others = self.agents.iter().filter(|(other, _)| *other != node);
        others.any(|(_, agent)| agent.was_healthy())
    }

    fn plan(&self) -> &Plan {
        match &self.log[0] {
            RolloutEvent::Planned(planned) => &planned.plan,
            _ => unreachable!("the first fact is the plan"),
        }
    }

    /// All that nodes say and do while time passes.
    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for (node, agent) in &mut self.agents {
            for report in agent.live(self.now) {
                self.reports.push((node.clone(), report));
            }
        }
    }

    fn deliver_report(&mut self, at: usize) -> Result<(), String> {
        if self.reports.is_empty() {
            return Ok(());
        }
        let at = at % self.reports.len();
        let (node, report) = self.reports.swap_remove(at);
        match self.agents[&node].away {
            true => Ok(()),
            false => self.report(&node, report),
        }
    }

    /// Fetches a node's whole log anew, in order.
    fn fetch(&mut self, node: &NodeId) -> Result<(), String> {
        let agent = &self.agents[node];
        if agent.away {
            return self.report(node, NodeReport::Unreachable);
        }
        let log = agent.log.clone();
        self.report(node, NodeReport::Seen)?;
        log.into_iter().try_for_each(|report| self.report(node, report))
    }

    fn crash(&mut self) {
        let old = self.leader.take();
        self.zombie = (self.scene == Scene::TwoLeaders).then_some(old).flatten();
    }

    fn elect(&mut self) -> Result<(), String> {
        if self.leader.is_some() {
            return Ok(());
        }
        if self.scene == Scene::Lag {
            let loses = self.rng.below(4);
            for _ in 0..loses {
                let last = self.log.last().map(RolloutEvent::kind).unwrap_or_default();
                let may_lose =
                    ["wave_started", "wave_passed", "node_started", "node_healthy", "wave_settled"];
                if may_lose.iter().any(|kind| last == format!("rollout.{kind}")) {
                    self.log.pop();
                }
            }
        }
        self.term += 1;
        self.leader = Rollout::replay(&self.log).map_err(|error| error.to_string())?;
        let controller = node(if self.term.is_multiple_of(2) { "c2" } else { "c1" });
        let grace_ms = if self.switches.grace { 600_000 } else { 0 };
        self.input(&Input::TakenOver { controller, term: self.term, grace_ms })
    }

    fn step(&mut self) -> Result<(), String> {
        let luck = self.rng.next() as usize;
        let some = names(NODES)[luck % NODES].clone();
        let calm = self.scene == Scene::OnlyControllers;
        match self.rng.below(100) {
            0..12 => self.resend(),
            12..34 => self.deliver_order(luck),
            34..40 if !self.orders.is_empty() => {
                let (at, keep) = (luck % self.orders.len(), luck.is_multiple_of(2));
                let copy = self.orders[at].clone();
                if keep {
                    self.orders.push(copy);
                } else {
                    drop(self.orders.remove(at));
                }
                Ok(())
            }
            40..60 => self.deliver_report(luck),
            60..66 if !self.reports.is_empty() => {
                let (at, keep) = (luck % self.reports.len(), luck.is_multiple_of(2));
                let copy = self.reports[at].clone();
                if keep {
                    self.reports.push(copy);
                } else {
                    drop(self.reports.remove(at));
                }
                Ok(())
            }
            66..72 => self.fetch(&some),
            72..84 => {
                self.pass(luck as u64 % 30_000);
                self.input(&Input::Tick)
            }
            84..87 => {
                self.crash();
                self.pass(luck as u64 % 3_600_000);
                Ok(())
            }
            87..92 => self.elect(),
            92..94 if !calm => {
                let agent = self.agents.get_mut(&some).expect("enrolled");
                agent.away = !agent.away;
                Ok(())
            }
            94..96 if !calm => self.command(luck),
            _ => Ok(()),
        }
    }

    fn command(&mut self, luck: usize) -> Result<(), String> {
        let command = match luck % 40 {
            0..6 => Command::Pause,
            6..20 => Command::Resume,
            20..28 => Command::Promote,
            28..36 => Command::Approve,
            36 => Command::Abort { rollback: true },
            37 => Command::Abort { rollback: false },
            38 => Command::Supersede { with: IntentId([4; 16]) },
            _ => return Ok(()),
        };
        self.input(&Input::Command { intent: IntentId([3; 16]), by: None, command })
    }

    /// No faults any more: every rollout comes to its end.
    fn calm_down(&mut self) -> Result<(), String> {
        self.zombie = None;
        self.elect()?;
        for turn in 0..400 {
            if self.leader.as_ref().is_some_and(|leader| leader.verdict().is_some()) {
                return Ok(());
            }
            self.resend()?;
            while !self.orders.is_empty() {
                self.deliver_order(0)?;
            }
            self.pass(20_000);
            self.reports.clear();
            for name in names(NODES) {
                self.fetch(&name)?;
            }
            self.input(&Input::Tick)?;
            let leader = self.leader.as_ref().expect("elected above");
            let command = match leader.state() {
                "awaiting_approval" => Command::Approve,
                "awaiting_promotion" => Command::Promote,
                // A person comes in the end, and gives up on what cannot be resumed.
                "paused" if turn % 2 == 0 => Command::Resume,
                "paused" => Command::Abort { rollback: turn % 4 == 1 },
                _ => continue,
            };
            self.input(&Input::Command { intent: IntentId([3; 16]), by: None, command })?;
        }
        let leader = self.leader.as_ref().expect("elected above");
        Err(format!("it never ends: {:?}", leader.phase()))
    }

    fn invariants(&self) -> Result<(), String> {
        for (node, agent) in &self.agents {
            if agent.applied > 1 || agent.returns > 1 {
                return Err(format!("{node} took a step twice"));
            }
            if agent.applied_after_return {
                return Err(format!("{node} went forward after its way back"));
            }
        }
        let replayed = Rollout::replay(&self.log).map_err(|error| error.to_string())?;
        if let Some(leader) = &self.leader
            && replayed.as_ref() != Some(leader)
        {
            return Err("the log is not the state".to_owned());
        }
        match matches!(self.scene, Scene::Rough | Scene::OnlyControllers) {
            true => self.one_wave_at_a_time(),
            false => Ok(()),
        }
    }

    fn one_wave_at_a_time(&self) -> Result<(), String> {
        let Some(leader) = &self.leader else { return Ok(()) };
        if !matches!(leader.phase(), Phase::Forward(_)) {
            return Ok(());
        }
        let moving: BTreeSet<u16> = self
            .agents
            .iter()
            .filter(|(node, agent)| {
                agent.is_changing() && leader.node(node).is_some_and(NodeState::is_under_way)
            })
            // A node that was given up on, and came back, is behind its wave.
            .filter(|(node, _)| !self.was_lost(node))
            .map(|(node, _)| leader.members[node].wave)
            .collect();
        match moving.len() > 1 {
            true => Err(format!("waves {moving:?} are under way at once")),
            false => Ok(()),
        }
    }

    fn was_lost(&self, node: &NodeId) -> bool {
        self.log
            .iter()
            .any(|fact| matches!(fact, RolloutEvent::NodeLost(lost) if lost.node == *node))
    }

    fn at_the_end(&self) -> Result<(), String> {
        let leader = self.leader.as_ref().expect("elected");
        let verdict = leader.verdict().expect("ended");
        let ends = self.log.iter().filter(|fact| matches!(fact, RolloutEvent::Ended(_))).count();
        if ends != 1 {
            return Err(format!("{ends} ends"));
        }
        if self.scene == Scene::OnlyControllers && verdict != Verdict::Succeeded {
            return Err(format!("nothing was wrong with any node, and it is {verdict:?}"));
        }
        let truth = |wanted: fn(&Agent) -> bool| {
            self.agents
                .iter()
                .filter(|(_, agent)| wanted(agent))
                .map(|(node, _)| node)
                .collect::<Vec<_>>()
        };
        let broken = truth(Agent::has_failed);
        let may_fail = leader.plan().parameters.max_failures.of(NODES);
        if verdict == Verdict::Succeeded && broken.len() > may_fail && !self.is_blurred() {
            return Err(format!("{broken:?} failed, and it succeeded"));
        }
        let on_new = truth(Agent::runs_new);
        if verdict == Verdict::RolledBack && !on_new.is_empty() && !self.is_blurred() {
            return Err(format!("{on_new:?} run the new release, and it is rolled back"));
        }
        Ok(())
    }

    /// Says whether what a leader did may have been forgotten by the next one; the nodes' own logs tell it later.
    fn is_blurred(&self) -> bool {
        matches!(self.scene, Scene::Lag | Scene::TwoLeaders)
            || self.agents.keys().any(|node| self.was_lost(node))
    }
}

fn run(seed: u64, switches: Switches) -> Result<Verdict, String> {
    let mut world = World::new(seed, switches);
    for _ in 0..STEPS {
        world.step()?;
        world.invariants()?;
    }
    world.calm_down()?;
    world.invariants()?;
    world.at_the_end()?;
    Ok(world.leader.and_then(|leader| leader.verdict()).expect("ended"))
}

#[test]
fn a_thousand_fleets_keep_the_invariants_of_rollouts() {
    let mut verdicts: BTreeMap<Verdict, u32> = BTreeMap::new();
    for seed in 0..1_000 {
        match run(seed, Switches::ON) {
            Ok(verdict) => *verdicts.entry(verdict).or_default() += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    // A simulator that never gets anywhere proves nothing.
    assert_eq!(verdicts.len(), 6, "every end is reached: {verdicts:?}");
}

#[test]
fn with_a_check_switched_off_some_fleet_breaks() {
    let off: [(&str, Switches); 6] = [
        ("dedup", Switches { dedup: false, ..Switches::ON }),
        ("return_wins", Switches { return_wins: false, ..Switches::ON }),
        ("canary_proofs", Switches { canary_proofs: false, ..Switches::ON }),
        ("own_turn", Switches { own_turn: false, ..Switches::ON }),
        ("grace", Switches { grace: false, ..Switches::ON }),
        ("hears_failures", Switches { hears_failures: false, ..Switches::ON }),
    ];
    for (name, switches) in off {
        assert!((0..1_000).any(|seed| run(seed, switches).is_err()), "{name} keeps nothing");
    }
}
