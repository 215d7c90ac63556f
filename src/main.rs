//! The one binary: sets up tracing, hands the command line over, and exits with the number that comes back.

mod lossy;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // A part says what it has to say to its own log. Whoever types a command reads what the command prints.
    let is_part = std::env::args_os().nth(1).is_some_and(|it| it == "agent" || it == "controller");
    let default = if is_part { "warn" } else { "off" };
    let filter = EnvFilter::try_from_env("SMGR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lossy::Lossy)
        .with_ansi(false)
        // It would say so on the same stream, and panic when that cannot be written either: a part whose own log is on
        // a full disk would die of its first warning.
        .log_internal_errors(false)
        .init();
    let ended = smgr::cli::run(std::env::args_os().collect());
    lossy::finish();
    ExitCode::from(ended.number())
}
