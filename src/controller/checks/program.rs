//! Checks by a program: only those that whoever owns the controller's machine has put into one folder.
//!
//! A release may come from anybody who may deploy one service. What it names is looked up in that folder and nowhere
//! else, so a release chooses among programs and brings none.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

use super::Found;
use crate::domain::rollout::Measure;

/// How long a program may take.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// The exit code that says: measured, and neither good nor bad (`EX_TEMPFAIL`).
const INCONCLUSIVE: i32 = 75;

/// What a program is told of the rollout, in its environment.
#[derive(Default)]
pub(super) struct Told {
    pub(super) service: String,
    pub(super) rollout: String,
    pub(super) release: String,
    pub(super) wave: u16,
    /// The nodes that run the release and are healthy.
    pub(super) nodes: Vec<String>,
}

/// Finds the program that a check names.
///
/// # Errors
/// Why there is none that may be run.
pub(super) fn find(folder: Option<&Path>, named: &str) -> Result<PathBuf, String> {
    let folder =
        folder.ok_or("this controller has no folder of programs (`checks` in controller.json)")?;
    let name = Path::new(named).strip_prefix(folder).unwrap_or(Path::new(named));
    let is_name = name.file_name().is_some_and(|file| Path::new(file) == name);
    let path = folder.join(name);
    if !is_name {
        return Err(format!(
            "`{named}` is not in {}, and no other program is run",
            folder.display()
        ));
    }
    let (known, place) = match (path.metadata(), folder.metadata()) {
        (Ok(known), Ok(place)) if known.is_file() => (known, place),
        (Err(error), _) | (_, Err(error)) => return Err(format!("`{}`: {error}", path.display())),
        _ => return Err(format!("`{}` is not a file", path.display())),
    };
    let own = rustix::process::geteuid().as_raw();
    let is_safe = |it: &std::fs::Metadata| {
        it.permissions().mode() & 0o022 == 0 && [0, own].contains(&it.uid())
    };
    match is_safe(&known) && is_safe(&place) {
        true => Ok(path),
        false => Err(format!(
            "`{}` and its folder have to belong to root or to whoever runs the controller, and be writable by nobody else",
            path.display()
        )),
    }
}

/// Runs a program to its end, or kills it with all that is left of its process group.
pub(super) async fn measure(program: &Path, arguments: &[String], told: Told) -> Found {
    measure_within(ENDED_WITHIN, program, arguments, told).await
}

async fn measure_within(
    within: Duration,
    program: &Path,
    arguments: &[String],
    told: Told,
) -> Found {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SMGR_SERVICE", told.service)
        .env("SMGR_ROLLOUT", told.rollout)
        .env("SMGR_RELEASE", told.release)
        .env("SMGR_WAVE", told.wave.to_string())
        .env("SMGR_NODES", told.nodes.join(" "))
        .stdin(Stdio::null())
        .stdout(Stdio::inherit()) // What it says stands in the log of the controller.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return (Measure::Error, error.to_string()),
    };
    let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let ended = timeout(within, child.wait()).await;
    // Its group is there as long as anything of it is: the number cannot have passed to others.
    if let Some(group) = group
        && kill_process_group(group, Signal::KILL).is_ok()
        && ended.is_err()
    {
        drop(child.wait().await); // Killed: it ends at once.
    }
    judge(ended, within)
}

fn judge(
    ended: Result<io::Result<ExitStatus>, tokio::time::error::Elapsed>,
    within: Duration,
) -> Found {
    match ended {
        Ok(Ok(status)) => match status.code() {
            Some(0) => (Measure::Good, "exit code 0".to_owned()),
            Some(INCONCLUSIVE) => (Measure::Inconclusive, format!("exit code {INCONCLUSIVE}")),
            Some(code) => (Measure::Bad, format!("exit code {code}")),
            None => (Measure::Error, status.to_string()),
        },
        Ok(Err(error)) => (Measure::Error, error.to_string()),
        Err(_) => (Measure::Error, format!("not ended within {}s", within.as_secs_f32())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn told() -> Told {
        Told {
            service: "web".to_owned(),
            rollout: "r-1".to_owned(),
            release: "sha256:00".to_owned(),
            wave: 2,
            nodes: vec!["n1".to_owned(), "n2".to_owned()],
        }
    }

    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_exit_code_is_good_bad_or_neither_and_what_has_none_is_no_measurement() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path();
        for (text, expected, value) in [
            ("exit 0", Measure::Good, "exit code 0"),
            ("exit 75", Measure::Inconclusive, "exit code 75"),
            ("exit 1", Measure::Bad, "exit code 1"),
            (
                "test \"$SMGR_NODES $SMGR_WAVE\" = 'n1 n2 2' && test \"$1\" = x",
                Measure::Good,
                "exit code 0",
            ),
            ("kill -9 $$", Measure::Error, "signal: 9 (SIGKILL)"),
        ] {
            let program = script(folder, "judge", text);
            let found = measure(&program, &["x".to_owned()], told()).await;
            assert_eq!(found, (expected, value.to_owned()), "{text}");
        }
        let found = measure(&folder.join("gone"), &[], told()).await;
        assert_eq!(found.0, Measure::Error);
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_killed_with_its_group() {
        let temp = tempfile::tempdir().unwrap();
        let program = script(temp.path(), "judge", "sleep 1000 & echo $! >\"$1\"; wait");
        let note = temp.path().join("pid").display().to_string();
        let found = measure_within(
            Duration::from_millis(500),
            &program,
            std::slice::from_ref(&note),
            told(),
        )
        .await;
        assert_eq!(found, (Measure::Error, "not ended within 0.5s".to_owned()));
        let pid = fs::read_to_string(note).unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let mut looks = 0;
        while !(stat().is_empty() || stat().contains(") Z")) {
            looks += 1;
            assert!(looks < 500, "its child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn a_release_chooses_among_the_programs_of_one_folder_and_brings_none() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path();
        let path = script(folder, "judge", "");
        assert_eq!(find(Some(folder), "judge"), Ok(path.clone()));
        assert_eq!(find(Some(folder), path.to_str().unwrap()), Ok(path.clone()));
        for named in ["/bin/sh", "../judge", "sub/judge", "gone", "", ".", ".."] {
            assert!(find(Some(folder), named).is_err(), "{named}");
        }
        assert!(find(None, "judge").is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(find(Some(folder), "judge").is_err(), "others may write it");
    }
}
