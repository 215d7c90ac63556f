//! Starts the parts of this machine's node and waits until the agent answers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::client::{Client, Whom};
use super::context::Context;
use super::error::CliError;
use crate::config;
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::ipc::channel::watch;
use crate::ipc::hello::Part;
use crate::ipc::place::Place;
use crate::wire::payload::{Ask, Reply};
use crate::wire::status::NodeStatus;

/// How long a start may take. It takes some 100 ms; a log that was cut off needs up to half a second more.
const START_MAX: Duration = Duration::from_secs(20);

/// The backstop for changes that the kernel did not tell of.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Lines of what the parts said that an error shows.
const SAID_MAX: usize = 5;

/// Starts the launcher, detached from the terminal: a Ctrl-C is for whoever waits, who asks it to drain.
///
/// # Errors
/// When the process cannot be made.
pub fn start(context: &Context) -> Result<Child, CliError> {
    let failed = |error: io::Error| CliError::caused(Code::IO, "failed to start the agent", &error);
    let path = context.folder.parts_log();
    let log =
        OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
    let error_log = log.try_clone().map_err(failed)?;
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(["agent", "--state"])
        .arg(context.folder.root())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log)
        .process_group(0)
        .spawn()
        .map_err(failed)
}

/// Waits until the agent answers a question, and returns the answer.
///
/// # Errors
/// When the launcher ends before that, or the agent takes too long; with what the parts said.
pub async fn until_up(
    context: &Context,
    mut launcher: Option<&mut Child>,
) -> Result<(Client, NodeStatus), CliError> {
    let deadline = Instant::now() + START_MAX;
    let began_at = std::fs::metadata(context.folder.parts_log()).map_or(0, |meta| meta.len());
    let mut changes = Changes::of(context);
    loop {
        if let Ok(mut client) = Client::connect(context, &Whom::default()).await
            && let Some(status) = status(&mut client).await
        {
            return Ok((client, status));
        }
        let ended = launcher.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(ended) = ended {
            return Err(said(context, began_at, &format!("the agent ended at once: {ended}")));
        }
        if Instant::now() >= deadline {
            return Err(said(context, began_at, "the agent does not answer"));
        }
        changes.next().await;
    }
}

/// Adds which service was probably meant, where none has the name.
pub async fn with_likely(
    context: &Context,
    whom: &Whom,
    meant: &ServiceId,
    error: CliError,
) -> CliError {
    if error.code != Code::NO_SUCH_SERVICE {
        return error;
    }
    let Ok(mut client) = Client::connect(context, whom).await else { return error };
    let known = status(&mut client).await.map(|status| status.services).unwrap_or_default();
    let near = config::likely_service(known.iter().map(|it| &it.service), meant.as_str());
    let hint = near.map_or_else(
        || format!("is `{meant}` spelt right?"),
        |near| format!("did you mean `{near}`?"),
    );
    error.hint(hint).next("smgr status")
}

/// Asks the node of this machine how it is.
pub async fn status(client: &mut Client) -> Option<NodeStatus> {
    let mut pending = client.ask(Ask::Status).await.ok()?;
    let mut whole: Option<NodeStatus> = None;
    while let Some(answer) = pending.next().await.ok()? {
        if let Reply::Status(part) = answer.reply {
            match &mut whole {
                Some(whole) => whole.add_part(*part),
                None => whole = Some(*part),
            }
        }
    }
    whole.filter(|_| pending.missing().is_empty())
}

/// Tells when something changes where the parts make their sockets.
struct Changes {
    notify: Option<AsyncFd<OwnedFd>>,
    place: Place,
}

impl Changes {
    fn of(context: &Context) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let notify = inotify::init(flags).ok().and_then(|notify| watch(notify).ok());
        let changes = Self { notify, place: context.folder.place() };
        changes.look();
        changes
    }

    /// Watches the folders that are there; the agent's is made by the keeper.
    fn look(&self) {
        let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        let folders = [self.place.folder().to_owned(), self.place.folder_of(Part::Agent)];
        let Some(notify) = &self.notify else { return };
        for folder in folders {
            // One that is missing shows itself in the one above it; the backstop covers the rest.
            let _watched = inotify::add_watch(notify.get_ref(), folder, wanted);
        }
    }

    async fn next(&mut self) {
        let backstop = sleep_until(Instant::now() + LOOK_AGAIN);
        let Some(notify) = &self.notify else { return backstop.await };
        tokio::select! {
            () = backstop => {}
            ready = notify.readable() => if let Ok(mut ready) = ready {
                let mut buffer = [0; 4096];
                while rustix::io::read(notify.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
                ready.clear_ready();
            },
        }
        self.look();
    }
}

/// Says what happened, with the last lines that the parts wrote since then.
fn said(context: &Context, since: u64, what: &str) -> CliError {
    let path = context.folder.parts_log();
    let text = read_from(&path, since).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(SAID_MAX)..].iter().map(|line| (*line).to_owned());
    let mut error = CliError::new(Code::AGENT_UNREACHABLE, what).at(super::context::short(&path));
    error.because.extend(last);
    error
}

fn read_from(path: &std::path::Path, since: u64) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(since))?;
    let mut bytes = Vec::new();
    file.take(64 * 1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
