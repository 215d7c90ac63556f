//! The forms of `contrib/ci`: a job deploys by each, and a job that is cancelled leaves nothing behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::Fleet;
use crate::releases::{archive, good};
use crate::support::machine::is_root;
use crate::support::process::signal;
use crate::support::wait::eventually;

/// The script part of a form, as the CI system would run it.
enum Form {
    Shell,
    GitHub,
    GitLab,
}

impl Form {
    fn script(&self) -> String {
        match self {
            Self::Shell => read("smgr-deploy"),
            Self::GitHub => block(&read("github/action.yml"), "      run: |\n", 8),
            Self::GitLab => block(&read("gitlab/templates/deploy.yml"), "    - |\n", 6),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/ci")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// Takes the text behind a line of YAML that stands further to the right.
fn block(text: &str, begin: &str, indent: usize) -> String {
    let rest = text.split_once(begin).unwrap().1.lines();
    let is_of_it = |line: &&str| line.is_empty() || line.starts_with(&" ".repeat(indent));
    rest.take_while(is_of_it)
        .map(|line| format!("{}\n", line.get(indent..).unwrap_or("")))
        .collect()
}

/// A fleet, and jobs that have an identity on it and nothing else.
struct Jobs {
    fleet: Fleet,
    identity: String,
    bus: String,
}

/// What a job printed, how it ended, and what it handed on.
struct Ended {
    code: Option<i32>,
    said: String,
    outputs: String,
    summary: String,
}

impl Jobs {
    fn of(nodes: u16) -> Self {
        let fleet = Fleet::of(nodes);
        let packed = Command::new("sh")
            .args(["-c", "tar -cz trust.smgr root.pub keys/operator.* | base64 -w0"])
            .current_dir(fleet.machine.state())
            .output()
            .unwrap();
        let setup = fs::read(fleet.machine.state().join("node.json")).unwrap();
        let setup: Value = serde_json::from_slice(&setup).unwrap();
        let bus = setup["bus"]["urls"][0].as_str().unwrap().to_owned();
        Self { fleet, identity: String::from_utf8(packed.stdout).unwrap(), bus }
    }

    /// Writes the spec; each wave rests for so long.
    fn spec(&self, bake: &str) -> PathBuf {
        let user = if is_root() { "user = \"root\"\n" } else { "" };
        let text = format!(
            "{user}exec = [\"${{release}}/bin/web\"]\n[stop]\ntimeout = \"2s\"\n[rollout]\n\
             min_healthy_time = \"100ms\"\nhealthy_deadline = \"5s\"\nbake_time = \"{bake}\"\n"
        );
        let path = self.fleet.machine.folder().join("web.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Begins a job.
    fn begin(&self, form: &Form, version: &str, script: &str, bake: &str) -> Child {
        let folder = self.fleet.machine.folder();
        let artifact = archive(&self.fleet.machine, version, script);
        let file = folder.join("job.sh");
        fs::write(&file, form.script()).unwrap();
        let smgr = Path::new(env!("CARGO_BIN_EXE_smgr")).parent().unwrap();
        let output = folder.join("outputs");
        let summary = folder.join("summary");
        for file in [&output, &summary] {
            drop(fs::remove_file(file)); // There is none before the first job.
        }
        let said = File::create(folder.join("said")).unwrap();
        let mut job = Command::new("sh");
        job.arg("-e")
            .arg(file)
            .current_dir(folder)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", smgr.display()))
            .env("SMGR_SERVICE", "web")
            .env("SMGR_SPEC", self.spec(bake))
            .env("SMGR_ARTIFACT", artifact)
            .env("SMGR_VERSION", version)
            .env("SMGR_SELECT", "")
            .env("SMGR_BUS", &self.bus)
            .env("SMGR_IDENTITY", &self.identity)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said);
        match form {
            Form::Shell | Form::GitLab => job.env("SMGR_OUTPUT", &output),
            Form::GitHub => job
                .env("GITHUB_OUTPUT", &output)
                .env("GITHUB_STEP_SUMMARY", &summary)
                .env("GITHUB_ACTIONS", "true")
                .env("GITHUB_ACTION_PATH", self::folder().join("github")),
        };
        job.spawn().unwrap()
    }

    fn end(&self, mut job: Child) -> Ended {
        let code = job.wait().unwrap().code();
        let folder = self.fleet.machine.folder();
        let written = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        Ended { code, said: self.said(), outputs: written("outputs"), summary: written("summary") }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.fleet.machine.folder().join("said")).unwrap()
    }

    fn run(&self, form: &Form, version: &str, script: &str) -> Ended {
        self.end(self.begin(form, version, script, "0s"))
    }

    /// Begins a job whose rollout rests after each wave, and waits until it watches it.
    fn begin_slow(&self, version: &str, bake: &str) -> Child {
        let job = self.begin(&Form::Shell, version, &good(version), bake);
        eventually("the job watches", || self.said().contains("canary").then_some(()));
        job
    }

    /// Returns the name and the state of the rollout that was asked for last.
    fn last(&self) -> (String, String) {
        let rollouts = self.fleet.machine.json(&["rollout", "list"])["rollouts"][0].clone();
        let text = |name: &str| rollouts[name].as_str().unwrap().to_owned();
        (text("rollout"), text("state"))
    }
}

#[test]
fn a_job_deploys_by_each_form_and_ends_as_the_rollout_does() {
    let jobs = Jobs::of(2);
    let ended = jobs.run(&Form::Shell, "1.0", &good("1"));
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.contains("1.0 on 2 of 2 nodes"), "{}", ended.said);

    let ended = jobs.run(&Form::GitHub, "2.0", &good("2"));
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    let (name, _) = jobs.last();
    assert_eq!(
        ended.outputs,
        format!(
            "SMGR_ROLLOUT={name}\nSMGR_STATE_AT_END=succeeded\nSMGR_EXIT_CODE=0\nSMGR_CHANGED=true\n\
             SMGR_ROLLED_BACK_TO=\n"
        )
    );
    let ended = jobs.run(&Form::GitLab, "3.0", "echo missing DATABASE_URL >&2; exit 1");
    assert_eq!(ended.code, Some(10), "{}", ended.said);
    assert!(ended.outputs.contains("=rolled_back\nSMGR_EXIT_CODE=10\n"), "{}", ended.outputs);
    assert!(ended.said.contains("why: smgr rollout show"), "{}", ended.said);
    let ended = jobs.run(&Form::GitHub, "4.0", "exit 3");
    assert_eq!(ended.code, Some(10), "{}", ended.said);
    let told = "::error title=web rolled back::";
    let line = ended.said.lines().find(|line| line.starts_with(told)).expect("an annotation");
    assert!(line.contains("exit code 10"), "{line}");
    let (name, _) = jobs.last();
    assert!(ended.outputs.contains(&format!("SMGR_ROLLOUT={name}\n")), "{}", ended.outputs);
    assert!(ended.outputs.ends_with("SMGR_ROLLED_BACK_TO=2.0\n"), "{}", ended.outputs);
    let told = ["```\n", &name, "WHY", "exited with code 3", "NEXT"];
    assert!(told.iter().all(|it| ended.summary.contains(it)), "{}", ended.summary);
}

#[test]
fn a_release_for_a_selection_is_published_to_the_controllers_by_a_script_without_a_key() {
    let jobs = Jobs::of(2);
    let (machine, folder) = (&jobs.fleet.machine, jobs.fleet.machine.folder());
    let sign = |version: &str, bake: &str| {
        let artifact = archive(machine, version, &good(version)).display().to_string();
        let spec = jobs.spec(bake).display().to_string();
        let line = ["sign", "--for", "10m", "deploy", "web", "-f", &spec, "--artifact", &artifact];
        let named = ["--release-version", version, "--select", "name=n1|n2"];
        let signed = machine.smgr(&[&line[..], &named].concat());
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        let file = folder.join(format!("wish-{version}"));
        fs::write(&file, signed.stdout).unwrap();
        file
    };
    let publish = |code: i32, file: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci/publish.py");
        let ran = Command::new("python3")
            .arg("-S")
            .arg(script)
            .args(["--as", "operator", "--server", &jobs.bus, "--timeout", "30", "--nkey"])
            .arg(machine.state().join("keys/operator.nk"))
            .arg(file)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
        assert_eq!(ran.status.code(), Some(code), "{said}");
        said
    };
    let file = sign("1.0", "0s");
    assert!(publish(0, &file).starts_with("controller  taken: "), "it is with the controllers");
    let (name, _) = jobs.last();
    let said = machine.exits(0, &["rollout", "watch", &name]);
    assert!(said.contains("1.0 on 2 of 2 nodes"), "{said}");
    // The same bytes are the same rollout.
    publish(0, &file);
    assert_eq!(machine.json(&["rollout", "list"])["rollouts"].as_array().unwrap().len(), 1);

    // What a controller refuses is told as it is told to the command line. Of two that were signed for the same number the
    // second hears what it waits for, and not that its number is old.
    let [second, third] = [sign("2.0", "60s"), sign("3.0", "0s")];
    publish(0, &second);
    let (second, _) = jobs.last();
    let said = publish(6, &third);
    assert!(said.contains("refused: ") && said.contains("[E0721]"), "{said}");
    assert_eq!(jobs.last().0, second, "nothing was begun");
    machine.exits(0, &["rollout", "abort", &second]);
    machine.exits(13, &["rollout", "watch", &second]);
}

#[test]
fn complaint_13_a_cancelled_job_leaves_nothing_locked_and_says_how_to_watch_on() {
    let jobs = Jobs::of(2);
    assert_eq!(jobs.run(&Form::Shell, "1.0", &good("1")).code, Some(0));
    for (sent, code, version) in [(Signal::INT, 130, "2.0"), (Signal::TERM, 143, "3.0")] {
        let job = jobs.begin_slow(version, "2s");
        let (name, _) = jobs.last();
        signal(job.id(), sent);
        let ended = jobs.end(job);
        assert_eq!(ended.code, Some(code), "{}", ended.said);
        let told = format!("{name} goes on without you: smgr rollout watch {name}");
        assert!(ended.said.contains(&told), "{}", ended.said);
        assert!(ended.outputs.contains(&format!("SMGR_ROLLOUT={name}\n")), "{}", ended.outputs);
        // As it says, from elsewhere.
        let said = jobs.fleet.machine.exits(0, &["rollout", "watch", &name]);
        assert!(said.contains(&format!("{version} on 2 of 2 nodes")), "{said}");
    }
    // One that is killed can say nothing, and holds nothing either: a person ends its rollout, and the next one goes.
    let mut job = jobs.begin_slow("4.0", "60s");
    let (name, _) = jobs.last();
    job.kill().unwrap();
    job.wait().unwrap();
    let ended = jobs.run(&Form::Shell, "5.0", &good("5"));
    assert_eq!(ended.code, Some(6), "one is under way: {}", ended.said);
    jobs.fleet.machine.exits(0, &["rollout", "abort", &name]);
    jobs.fleet.machine.exits(13, &["rollout", "watch", &name]);
    let ended = jobs.run(&Form::Shell, "5.0", &good("5"));
    assert_eq!(ended.code, Some(0), "{}", ended.said);
}

#[test]
fn a_job_runs_no_program_that_is_not_the_pinned_one() {
    let jobs = Jobs::of(1);
    let folder = jobs.fleet.machine.folder();
    let program = folder.join("program");
    fs::write(&program, "#!/bin/sh\necho ran >&2\nexit 3\n").unwrap();
    let run = |digest: &str| {
        let ran = Command::new(self::folder().join("smgr-deploy"))
            .env("SMGR_SERVICE", "web")
            .env("SMGR_SPEC", "web.toml")
            .env("SMGR_STATE", jobs.fleet.machine.state())
            .env("SMGR_BINARY", format!("file://{}", program.display()))
            .env("SMGR_SHA256", digest)
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).contains("ran"))
    };
    assert_eq!(run(&"0".repeat(64)), (Some(1), false));
    let sum = Command::new("sha256sum").arg(&program).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(run(sum.split(' ').next().unwrap()), (Some(3), true));
}

#[test]
fn the_gitlab_component_holds_the_script_and_the_github_action_hands_it_every_input() {
    let script = read("smgr-deploy");
    let body = &script[script.find("set -eu\n").unwrap()..];
    assert_eq!(Form::GitLab.script(), body, "contrib/ci/gitlab has the body of smgr-deploy");
    let action = read("github/action.yml");
    let variables = action.lines().filter_map(|line| line.trim().strip_prefix("SMGR_"));
    let inputs: Vec<_> = variables.filter_map(|line| line.split_once(": ${{ inputs.")).collect();
    assert!(inputs.len() >= 8, "{inputs:?}");
    for (variable, input) in inputs {
        let input = input.trim_end_matches(" }}");
        assert_eq!(variable.to_lowercase(), input);
        assert!(action.contains(&format!("\n  {input}: {{")), "{input}");
        assert!(script.contains(&format!("SMGR_{variable}")), "{variable}");
    }
}
