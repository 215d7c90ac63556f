//! Figures of single parts of smgr, measured inside one process, each beside a floor that was measured with it.
//!
//! `scripts/bench` starts it and judges; one line of JSON is one figure. The other figures are of real processes and
//! come from `scripts/bench.d`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a bench prints, and looks at the clock"
)]

#[path = "figures/append.rs"]
mod append;
#[path = "figures/command.rs"]
mod command;
#[path = "figures/fleet.rs"]
mod fleet;
#[path = "figures/history.rs"]
mod history;
#[path = "figures/ping.rs"]
mod ping;
#[path = "figures/replay.rs"]
mod replay;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// What was measured of smgr, and of something else in the same run.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) smgr: f64,
    pub(crate) other: &'static str,
    pub(crate) measured: f64,
}

impl Figure {
    fn print(&self) {
        let Self { name, unit, smgr, other, measured } = self;
        let line = serde_json::json!({
            "figure": name, "unit": unit, "smgr": smgr, "other": other, "measured": measured,
        });
        println!("{line}");
    }
}

/// Returns the sample in the middle, in microseconds.
pub(crate) fn median_us(samples: &mut [Duration]) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let figures = match args[..] {
        ["append", folder, nats] => append::append(Path::new(folder), nats)?,
        ["append-signed", folder] => append::append_signed(Path::new(folder))?,
        ["write-history", folder, events] => {
            history::write(Path::new(folder), events.parse().context("a number of events")?)?;
            Vec::new()
        }
        ["write-segment", folder] => history::write_until_killed(Path::new(folder))?,
        ["replay", folder] => replay::replay(Path::new(folder))?,
        ["crash-open", folder] => replay::crash_open(Path::new(folder))?,
        ["command", state, service] => command::command(Path::new(state), service)?,
        ["ping", state, url, nodes] => {
            ping::ping(Path::new(state), url, nodes.parse().context("a number of nodes")?)?
        }
        ["ingest", state, nodes, each] => {
            let number = |text: &str| text.parse().context("a number");
            fleet::ingest(Path::new(state), number(nodes)?, number(each)?)?
        }
        ["order-size", url, nodes] => {
            fleet::order_size(url, nodes.parse().context("a number of nodes")?)?
        }
        ["bare-nodes", url, nodes] => {
            ping::bare_nodes(url, nodes.parse().context("a number of nodes")?)?;
            Vec::new()
        }
        _ => bail!("started by scripts/bench; there is no figure {args:?}"),
    };
    figures.iter().for_each(Figure::print);
    Ok(())
}
