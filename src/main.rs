//! The one binary: sets up tracing, hands the command line over, and exits with the number that comes back.

mod lossy;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("SMGR_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
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
