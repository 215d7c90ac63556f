//! `smgr status`: what runs, what does not, and why.

use super::names::Names;
use super::table::{Align, Table, wrapped};
use super::units::{age, count, moment, size};
use super::words::{exit_words, in_time, name_of};
use super::{instance, units};
use crate::cli::view::{Health, Readiness, View, health, readiness};
use crate::domain::event::StateName;
use crate::domain::time::UnixMicros;
use crate::wire::status::{BusState, Condition, InstanceStatus, NodeStatus, ReleaseStatus};

/// In which order the first line counts states.
const STATES: [StateName; 10] = [
    StateName::Running,
    StateName::Reloading,
    StateName::Starting,
    StateName::Waiting,
    StateName::Stopping,
    StateName::Backoff,
    StateName::Failed,
    StateName::Completed,
    StateName::Inactive,
    StateName::Unknown,
];

/// An answer older than this says how old it is.
const AGE_MS_UNSAID: u64 = 10_000;

/// A restart longer ago is no news.
const RESTART_MS_TOLD: u64 = 60 * 60 * 1000;

/// Returns the screen of `smgr status [SELECTOR]`: a table, or the page of the one instance that was asked for.
///
/// Ages count to the time at which each node answered, so that two clocks are never compared.
pub fn status_text(view: &View<'_>, now: UnixMicros, width: Option<u16>) -> String {
    let instances = view.instances();
    if let (Some(_), [(node, only)]) = (view.selector, instances.as_slice()) {
        let names = Names::of(view);
        let mut text = instance::instance_text((node, only), view.known, &names, now, width);
        text.push_str(&missing_line(view, width));
        return text;
    }
    let names = Names::of(view);
    let mut text = match view.selector {
        None => first_line(view, now, width),
        Some(_) => instance::service_head(view, &instances, now, width),
    };
    text.push_str(&missing_line(view, width));
    if !instances.is_empty() {
        text.push('\n');
        text.push_str(&instances_table(&instances, &names, width));
    }
    text.push_str(&alerts_table(view, &instances, width));
    text.push_str(&more_line(view, &instances, &names, width));
    text
}

fn first_line(view: &View<'_>, now: UnixMicros, width: Option<u16>) -> String {
    let alerts: usize = view.nodes.iter().map(|node| node.alerts.len()).sum();
    let alerts = match alerts {
        0 => "no alerts".to_owned(),
        n => count(n as u64, "alert"),
    };
    let mut parts = Vec::new();
    if let ([node], []) = (view.nodes, view.missing) {
        parts.extend([node.node.to_string(), instance_counts(view), alerts]);
        parts.extend([bus_words(&node.bus), log_words(node), isolation_words(node)]);
        parts.push(format!("history {} of {}", size(node.log_bytes), size(node.log_bytes_max)));
    } else {
        let fleet = view.nodes.first().map(|node| format!("fleet {}", node.fleet));
        let asked = view.nodes.len() + view.missing.len();
        parts.extend([fleet.unwrap_or_default(), nodes_words(asked, view), instance_counts(view)]);
        parts.push(alerts);
    }
    parts.push(as_of(view, now));
    wrapped(&parts, "   ", 2, width)
}

fn nodes_words(asked: usize, view: &View<'_>) -> String {
    let asked = count(asked as u64, "node");
    match view.missing.len() {
        0 => format!("{asked}: all answered"),
        missing => format!("{asked}: {} answered, {missing} did not", view.nodes.len()),
    }
}

/// Says as of when the oldest answer is.
pub(super) fn as_of(view: &View<'_>, now: UnixMicros) -> String {
    let Some(at) = view.nodes.iter().map(|node| node.at).min() else {
        return "nobody answered".to_owned();
    };
    let behind = now.ms_since(at);
    let behind = match behind {
        0..AGE_MS_UNSAID => String::new(),
        _ => format!(", {} ago", age(behind)),
    };
    format!("as of {}{behind}", moment(at, now))
}

fn instance_counts(view: &View<'_>) -> String {
    let instances = view.instances();
    if instances.is_empty() {
        return "no services yet".to_owned();
    }
    let of_state = |state: StateName| instances.iter().filter(|(_, i)| i.state == state).count();
    let counts: Vec<String> = STATES
        .into_iter()
        .map(|state| (of_state(state), state))
        .filter(|(number, _)| *number > 0)
        .map(|(number, state)| format!("{number} {}", name_of(&state)))
        .collect();
    format!("{}: {}", count(instances.len() as u64, "instance"), counts.join(", "))
}

fn bus_words(bus: &BusState) -> String {
    match bus {
        BusState::Off => "bus off".to_owned(),
        BusState::Connected { .. } => "bus ok".to_owned(),
        BusState::Away { why } => format!("bus away ({why})"),
    }
}

fn log_words(node: &NodeStatus) -> String {
    node.log_unavailable.as_ref().map(|why| format!("log unavailable ({why})")).unwrap_or_default()
}

fn isolation_words(node: &NodeStatus) -> String {
    // The page of the machine says why; here the word is enough.
    if node.isolation.starts_with("none") { "isolation none".to_owned() } else { String::new() }
}

fn missing_line(view: &View<'_>, width: Option<u16>) -> String {
    if view.missing.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = view.missing.iter().map(|node| node.as_str()).collect();
    let parts = ["no answer from".to_owned(), names.join(", ")];
    let parts = [parts.join(" "), "what runs there is not known".to_owned()];
    wrapped(&parts, "; ", 2, width)
}

/// Returns the table of instances in the given order.
pub(super) fn instances_table(
    instances: &[(&NodeStatus, &InstanceStatus)],
    names: &Names,
    width: Option<u16>,
) -> String {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("STATE", Align::Left),
        ("READY", Align::Left),
        ("UP", Align::Left),
        ("RESTARTS", Align::Right),
        ("MEM", Align::Right),
        ("RELEASE", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for (node, instance) in instances {
        table.row([
            names.instance(&instance.service, instance.index, &node.node),
            name_of(&instance.state),
            ready_words(instance).to_owned(),
            instance.started_at.map_or_else(|| "-".to_owned(), |at| age(node.at.ms_since(at))),
            match instance.state {
                StateName::Unknown => "-".to_owned(),
                _ => instance.restarts.to_string(),
            },
            instance.memory_bytes.map_or_else(|| "-".to_owned(), size),
            release_of(node, instance).and_then(ReleaseStatus::words).unwrap_or("-".to_owned()),
            note(instance, node.at),
        ]);
    }
    table.render(width)
}

fn release_of<'n>(node: &'n NodeStatus, instance: &InstanceStatus) -> Option<&'n ReleaseStatus> {
    node.releases.iter().find(|it| it.service == instance.service)
}

fn ready_words(instance: &InstanceStatus) -> &'static str {
    match (health(instance), readiness(instance)) {
        (Health::Well, Readiness::No) => "-",
        (_, Readiness::Yes) => "yes",
        (_, Readiness::No) => "no",
        (_, Readiness::Unknown) => "unknown",
    }
}

/// Returns what a person should know of an instance, in one clause or two.
fn note(instance: &InstanceStatus, now: UnixMicros) -> String {
    let mut clauses: Vec<String> = Vec::new();
    clauses.extend(state_note(instance, now));
    if health(instance) != Health::Well && clauses.is_empty() {
        clauses.extend(instance.reason.clone());
    }
    for (kind, wrong) in [("ConfigCurrent", false), ("Degraded", true), ("Throttled", true)] {
        if let Some(Condition { status: Some(status), reason, .. }) = instance.conditions.get(kind)
            && *status == wrong
        {
            clauses.push(condition_note(kind, reason));
        }
    }
    clauses.join("; ")
}

fn condition_note(kind: &str, reason: &str) -> String {
    match kind {
        "ConfigCurrent" => "runs by an earlier configuration".to_owned(),
        _ if reason.is_empty() => kind.to_lowercase(),
        _ => format!("{}: {reason}", kind.to_lowercase()),
    }
}

fn state_note(instance: &InstanceStatus, now: UnixMicros) -> Option<String> {
    let ended = instance.exit.as_ref().map(|ended| {
        let oom = if ended.oom_killed { " (out of memory)" } else { "" };
        format!("{}{oom} after {}", exit_words(ended.exit), units::span(ended.ran_ms))
    });
    match instance.state {
        StateName::Backoff => {
            let why = ended.or_else(|| instance.reason.clone());
            let next = instance
                .next_attempt_at
                .map(|at| format!("try {} {}", instance.restarts + 1, in_time(at, now)));
            Some([why, next].into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
        StateName::Failed => {
            let why = ended.or_else(|| instance.reason.clone());
            Some(why.map_or_else(|| "gave up".to_owned(), |why| format!("{why}; gave up")))
        }
        StateName::Running if instance.restarts > 0 => {
            let since = instance.started_at.map(|at| now.ms_since(at))?;
            if since > RESTART_MS_TOLD {
                return None;
            }
            let why = ended.map(|ended| format!(": {ended}")).unwrap_or_default();
            Some(format!("restarted {} ago{why}", age(since)))
        }
        StateName::Starting | StateName::Stopping | StateName::Reloading => {
            let step = instance.substate.as_ref().map(|step| format!("{step}, "));
            let why = instance.reason.as_ref().map(|why| format!("; {why}"));
            let since = age(now.ms_since(instance.since));
            Some(format!("{}for {since}{}", step.unwrap_or_default(), why.unwrap_or_default()))
        }
        StateName::Waiting | StateName::Unknown | StateName::Inactive => instance.reason.clone(),
        StateName::Completed => Some(format!("ended {} ago", age(now.ms_since(instance.since)))),
        StateName::Running => None,
    }
}

fn alerts_table(
    view: &View<'_>,
    instances: &[(&NodeStatus, &InstanceStatus)],
    width: Option<u16>,
) -> String {
    let mut table = Table::new(&[
        ("ALERT", Align::Left),
        ("SEVERITY", Align::Left),
        ("WHERE", Align::Left),
        ("FIRING", Align::Left),
        ("WHAT", Align::Left),
    ]);
    let names = Names::of(view);
    let mut any = false;
    for node in view.nodes {
        for alert in &node.alerts {
            let about =
                node.instances.iter().find(|i| format!("{}/{}", i.service, i.index) == alert.place);
            let is_asked_for =
                about.is_some_and(|about| instances.iter().any(|(_, i)| std::ptr::eq(*i, about)));
            if view.selector.is_some() && !is_asked_for {
                continue;
            }
            any = true;
            table.row([
                alert.alert.clone(),
                alert.severity.clone(),
                about.map_or_else(
                    || alert.place.clone(),
                    |i| names.instance(&i.service, i.index, &node.node),
                ),
                age(node.at.ms_since(alert.since)),
                alert.summary.clone(),
            ]);
        }
    }
    if any { format!("\n{}", table.render(width)) } else { String::new() }
}

fn more_line(
    view: &View<'_>,
    instances: &[(&NodeStatus, &InstanceStatus)],
    names: &Names,
    width: Option<u16>,
) -> String {
    let parts = match instances.first() {
        Some((node, first)) => {
            let name = names.instance(&first.service, first.index, &node.node);
            [format!("more: smgr status {name}"), format!("smgr logs {name}")]
        }
        None if view.selector.is_some() || view.nodes.is_empty() => return String::new(),
        None => ["more: smgr run NAME -- COMMAND".to_owned(), "smgr init".to_owned()],
    };
    format!("\n{}", wrapped(&parts, "    ", 6, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::cli::selector::Selector;
    use crate::domain::id::NodeId;
    use crate::domain::text::columns;

    fn screen(view: &View<'_>, width: Option<u16>) -> String {
        let now = view.nodes.first().map_or(UnixMicros(0), |node| node.at);
        status_text(view, now, width)
    }

    #[test]
    fn one_machine_is_shown_as_in_the_contract() {
        assert_eq!(
            screen(&View::of(&sample::node()), None),
            "\
n1   5 instances: 4 running, 1 backoff   1 alert   bus ok   history 12 MiB of 1 GiB   as of 14:07:40Z

SERVICE  STATE    READY  UP     RESTARTS      MEM  RELEASE  NOTE
worker   backoff  no     -            10        -  -        exit 101 after 1.2s; try 11 in 15s
nginx    running  yes    9d04h         0   41 MiB  -
redis    running  yes    9d04h         0   61 MiB  -
web/0    running  yes    2h11m         0  182 MiB  -
web/1    running  yes    2h11m         0  177 MiB  -

ALERT                 SEVERITY  WHERE   FIRING  WHAT
worker/restart-limit  warning   worker  45s     10 restarts in 2m (limit 10 in 10m); still trying, every 60s

more: smgr status worker    smgr logs worker
"
        );
    }

    #[test]
    fn the_first_minute_is_shown_as_in_the_contract() {
        assert_eq!(
            screen(&View::of(&sample::first_minute_node()), None),
            "\
n1   1 instance: 1 running   no alerts   bus off   history 64 KiB of 1 GiB   as of 09:00:23Z

SERVICE  STATE    READY  UP  RESTARTS     MEM  RELEASE  NOTE
hello    running  yes    1s         1  19 MiB  -        restarted 1s ago: signal KILL after 12.6s

more: smgr status hello    smgr logs hello
"
        );
    }

    #[test]
    fn a_machine_without_services_says_how_to_get_one() {
        assert_eq!(
            screen(&View::of(&sample::empty_node()), None),
            "\
n1   no services yet   no alerts   bus ok   history 12 MiB of 1 GiB   as of 14:07:40Z

more: smgr run NAME -- COMMAND    smgr init
"
        );
    }

    #[test]
    fn the_first_line_says_what_is_wrong_with_the_machine_itself() {
        let mut node = sample::empty_node();
        node.bus = BusState::Away { why: "connection refused\x1b[2J".to_owned() };
        node.isolation = "none: not started by root".to_owned();
        node.log_unavailable = Some("no space left on device".to_owned());
        let text = status_text(&View::of(&node), node.at.plus_ms(86_400_000), None);
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "n1   no services yet   no alerts   bus away (connection refused\u{fffd}[2J)   log unavailable (no \
             space left on device)   isolation none   history 12 MiB of 1 GiB   as of 2026-11-22 14:07:40Z, \
             1d00h ago"
        );
    }

    #[test]
    fn a_table_is_cut_at_the_width_in_its_last_column_and_the_first_line_goes_on_below() {
        let text = screen(&View::of(&sample::node()), Some(80));
        assert!(text.lines().all(|line| columns(line) <= 80), "{text}");
        assert!(text.contains("exit 101 after 1.2s…\n"), "{text}");
        assert!(text.contains("bus ok\n  history 12 MiB of 1 GiB   as of 14:07:40Z\n"), "{text}");
        assert!(
            text.contains("worker/restart-limit  warning   worker  45s     10 restarts"),
            "{text}"
        );
    }

    #[test]
    fn several_machines_are_named_and_so_is_who_did_not_answer() {
        let nodes = [sample::node(), sample::empty_node()];
        let missing: Vec<NodeId> = vec!["n6".parse().unwrap()];
        let text = screen(&View { nodes: &nodes, missing: &missing, ..View::default() }, None);
        assert!(
            text.starts_with(
                "fleet acme   3 nodes: 2 answered, 1 did not   5 instances: 4 running, 1 backoff   1 alert   \
                 as of 14:07:40Z\nno answer from n6; what runs there is not known\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nworker@n1  backoff"), "{text}");
        assert!(text.contains("\nweb/0@n1   running"), "{text}");
        assert!(text.ends_with("more: smgr status worker@n1    smgr logs worker@n1\n"), "{text}");
    }

    #[test]
    fn what_is_stopped_as_wanted_is_no_failure_and_what_nobody_can_see_is_unknown() {
        let mut node = sample::node();
        node.instances.truncate(2);
        node.alerts.clear();
        let [stopped, unknown] = node.instances.as_mut_slice() else { panic!() };
        stopped.desired = crate::domain::event::Desired::Stopped;
        stopped.state = StateName::Inactive;
        stopped.reason = Some("stopped by alice".to_owned());
        stopped.conditions.clear();
        unknown.state = StateName::Unknown;
        unknown.reason = Some("the keeper is away".to_owned());
        unknown.started_at = None;
        let text = screen(&View::of(&node), None);
        assert!(
            text.contains(
                "\nweb/1    unknown   unknown  -          -  177 MiB  -        the keeper is away\n"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "\nworker   inactive  -        -         10        -  -        stopped by alice\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_selector_that_names_one_instance_opens_its_page() {
        let node = sample::node();
        let worker: Selector = "worker".parse().unwrap();
        let text = screen(&View { selector: Some(&worker), ..View::of(&node) }, None);
        assert_eq!(
            text,
            "\
worker/0@n1   Background jobs   team-shop   https://runbooks.example.com/worker
  state       backoff since 14:06:56Z (44s); try 11 at 14:07:55Z (delay 58.9s)
  desired     running, generation 17, by alice, 2026-11-19 09:12:04Z
  spec        b0b0b0b0  services.d/worker.toml
  changed     here: env_files
  result      exit_code 101 after 1.2s; the last 11 runs ended the same way
  conditions  Ready=false (NotRunning, 2m38s)   Healthy=unknown   DependenciesMet=true   ConfigCurrent=true
  memory      peak of the last run 31 MiB of 512 MiB, no OOM kill
  log         /var/log/smgr/worker/0/current   3.1 MiB of 100 MiB
      14:06:56.2Z stderr  thread 'main' panicked at src/db.rs:44: missing DATABASE_URL
  next        smgr logs worker -f    smgr history worker    smgr stop worker
"
        );
    }

    #[test]
    fn a_service_with_several_instances_is_a_head_and_a_table() {
        let node = sample::node();
        let web: Selector = "web".parse().unwrap();
        let text = screen(&View { selector: Some(&web), ..View::of(&node) }, None);
        assert_eq!(
            text,
            "\
web
  desired     running, generation 17
  spec        b0b0b0b0  services.d/web.toml
  as of       14:07:40Z

SERVICE  STATE    READY  UP     RESTARTS      MEM  RELEASE  NOTE
web/0    running  yes    2h11m         0  182 MiB  -
web/1    running  yes    2h11m         0  177 MiB  -

more: smgr status web/0    smgr logs web/0
"
        );
    }

    #[test]
    fn a_selector_that_names_nothing_says_so() {
        let node = sample::node();
        let nothing: Selector = "billing".parse().unwrap();
        let view = View { selector: Some(&nothing), ..View::of(&node) };
        assert_eq!(screen(&view, None), "nothing matches billing   as of 14:07:40Z\n");
    }

    #[test]
    fn a_log_line_cannot_speak_to_the_terminal() {
        let mut node = sample::node();
        node.instances[0].tail = vec!["\x1b]52;c;ZXZpbA==\x07 \u{202e}txt\u{9b}31m".to_owned()];
        let worker: Selector = "worker".parse().unwrap();
        let text = screen(&View { selector: Some(&worker), ..View::of(&node) }, None);
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}', '\u{9b}']), "{text:?}");
    }
}
