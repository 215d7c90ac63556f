//! help, explain, completions, init, check, backup: what needs no agent.

use std::path::{Path, PathBuf};

use clap_complete::Shell;
use serde_json::json;

use crate::cli::args;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::missing::missing;
use crate::cli::out::{Out, error_width};
use crate::cli::specs::{self, PROJECT_FILE};
use crate::config::{self, Input, Part};
use crate::domain::code::{self, Code, ExitCode};
use crate::domain::origin::Layer;
use crate::head::folder::write_new;

const BUS: &str = "\
The bus is a NATS server. One machine needs none: everything works over the local socket.

With one, jobs and people elsewhere can command and watch this machine. smgr starts a
nats-server of 2.14.5 or later where one is in PATH (SMGR_NATS_SERVER=/path/to/it names
another, SMGR_NATS_SERVER=off none), supervises it as the service `nats`, listens on
127.0.0.1 only and makes the keys for it. smgr downloads nothing.

  smgr up                                       with its own server, where there is one
  smgr up --bus nats://bus.example.com:4222     with a server of yours
  smgr restart web --node n1 --via bus          over the bus, even to this machine

`smgr up --nodes 1 --listen 10.0.0.1:4222` lets other machines reach it, by TLS 1.3. smgr makes
the certificates; the welcome of `smgr node admit` brings the one of the authority. It is
bus-ca.pem in the state folder, and what stock NATS clients need too. For a server of yours at
tls:// the authorities of the system count, or those in a bus-ca.pem that you put there.

A bus that listened in clear before stays so, since its nodes know no authority. To encrypt it:
smgr down, write \"tls\": true into fleet.json of the state folder, smgr up -d; then each other
machine joins again (smgr down there, request, admit, join, smgr up -d).

Whoever holds the bus can hold messages back and nothing more: every wish is verified on
the node, against the keys and grants that it holds.
";

const LAYERS: &str = "\
The configuration of a service is the sum of eight layers; later ones win.

  1  built-in     the program: smgr help spec
  2  vendor       services that came with packages
  3  host         services.d/NAME.toml, or a project's smgr.toml
  4  group        groups.d/GROUP.toml
  5  release      the spec that was deployed
  6  fleet        smgr config set web KEY=VALUE --select env=prod
  7  node         override.d/NAME.toml: smgr config set web KEY=VALUE, smgr edit web;
                  below the file, from anywhere: smgr config set web@n2 KEY=VALUE
  8  temporary    smgr config set web KEY=VALUE --for 2h

--select, SERVICE@NODE and --for are signed wishes: each node checks them, refuses what would be no
valid spec, and goes on by them at once. What stands in files holds after: smgr apply.

  smgr config show web --origin --hidden        what holds, who said so, what it hides
  smgr config unset web KEY --select env=prod   set it no more
  smgr config unset web@n2 KEY                  the same for one node, or for a time
";

const PLACEMENT: &str = "\
Where a service runs in a fleet follows from the labels that the root key signed into the roster.

  smgr up --nodes 3 --label env=prod --label n2:zone=b    nodes of this machine, at their next start
  smgr node admit --label env=prod                        a node on another machine

  [placement]
  select   = \"env=prod,role=web\"    in its spec; a deploy without --select goes there
  on_leave = \"stop\"                 stop | keep: on a node that matches no more

A node that joins, comes back or begins to match gets the release, as many at a time as
rollout.max_parallel says; then the nodes that match no more lose it. One that does not become
healthy stops the moves. A selection that matches nothing takes the service from nowhere.

  smgr plan web -f web.toml           who would get it and who would lose it
  smgr events --fleet                 what moves, and why
  smgr rollout show r-9d2c            what waits for its turn, and what holds it up
  smgr remove web --select env=test   take it away, in waves
";

/// Explains a topic or a command.
pub(super) fn help(topic: &[String], out: Out) -> Result<ExitCode, CliError> {
    let words: Vec<&str> = topic.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        [] => args::tree().render_long_help().to_string(),
        ["spec"] => config::spec_help(),
        ["bus"] => BUS.to_owned(),
        ["layers"] => LAYERS.to_owned(),
        ["placement"] => PLACEMENT.to_owned(),
        ["exit-codes"] => exit_codes(),
        ["errors"] => code::markdown(),
        command => {
            let mut found = args::command(command).ok_or_else(|| {
                CliError::new(Code::USAGE, format!("no help on `{}`", words.join(" ")))
                    .hint("topics: spec, layers, placement, bus, exit-codes, errors, or a command")
                    .next("smgr help")
            })?;
            found.render_long_help().to_string()
        }
    };
    out.data(&text);
    Ok(ExitCode::Done)
}

fn exit_codes() -> String {
    ExitCode::ALL.iter().map(|exit| format!("{:>4}  {}\n", exit.number(), exit.meaning())).collect()
}

/// Explains a code.
pub(super) fn explain(code: Code, out: Out) -> Result<ExitCode, CliError> {
    let entry = code.entry().ok_or_else(|| {
        CliError::new(Code::USAGE, format!("{code} is not a code of this version"))
            .next("smgr help errors")
    })?;
    match out.is_text() {
        true => out.data(&format!(
            "{code}: {}  (exit {})\n\n{}\n",
            entry.title,
            entry.exit.number(),
            entry.explanation
        )),
        false => out.json(&json!({
            "schema": "smgr.explanation.v1", "code": code.to_string(), "title": entry.title,
            "exit_code": entry.exit.number(), "explanation": entry.explanation,
        })),
    }
    Ok(ExitCode::Done)
}

/// Prints completions; what is reserved for later versions is left out.
pub(super) fn completions(shell: Shell, out: Out) -> ExitCode {
    let mut tree = <args::Cli as clap::CommandFactory>::command();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut tree, "smgr", &mut text);
    out.data(&String::from_utf8_lossy(&text));
    ExitCode::Done
}

/// Writes a commented smgr.toml.
pub(super) fn init(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    let text = config::template(context.service_user().as_deref());
    config::write_new(Path::new(PROJECT_FILE), &text)
        .map_err(|mistake| specs::mistaken(&[mistake], "nothing was written"))?;
    out.line(&format!("wrote ./{PROJECT_FILE}      next: smgr check, smgr up"));
    Ok(ExitCode::Done)
}

/// Checks files, or all that `up` would load.
pub(super) fn check(context: &Context, paths: &[PathBuf], out: Out) -> Result<ExitCode, CliError> {
    let outcome = "nothing was changed";
    let logs = context.service_logs();
    let mut loaded = if paths.is_empty() {
        let sources = match context.setup()? {
            Some(setup) if specs::project_here().is_none() => setup.specs,
            _ => specs::sources(context, specs::project_here()),
        };
        specs::load(context, &sources, &logs, outcome)?
    } else {
        let mut inputs = Vec::new();
        for path in paths {
            inputs.extend(read(path)?);
        }
        config::assemble(inputs, &specs::options(context, &logs))
            .map_err(|mistakes| specs::mistaken(&mistakes, outcome))?
    };
    loaded.warnings.extend(missing(context, &loaded));
    let warnings = config::render_warnings(&loaded.warnings, error_width().map(usize::from));
    if out.is_text() && !warnings.is_empty() {
        out.note(warnings.trim_end());
    }
    let names: Vec<&str> = loaded.services.keys().map(|service| service.as_str()).collect();
    match out.is_text() {
        true if names.is_empty() => out.line("no services; nothing is wrong"),
        true => out.line(&format!("{} checked, nothing is wrong", names.join(", "))),
        false => out.json(&json!({"schema": "smgr.check.v1", "services": names, "mistakes": []})),
    }
    Ok(ExitCode::Done)
}

fn read(path: &Path) -> Result<Vec<Input>, CliError> {
    let failed = |error: std::io::Error| {
        CliError::caused(Code::FILE_UNREADABLE, "failed to read", &error)
            .at(path.display().to_string())
    };
    if path.is_dir() {
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
        files.sort();
        let read: Result<Vec<_>, _> = files.iter().map(|file| read(file)).collect();
        return Ok(read?.into_iter().flatten().collect());
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let is_project = path.file_name().is_some_and(|name| name == PROJECT_FILE);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let folder = absolute.parent().map(|folder| folder.display().to_string());
    Ok(vec![Input {
        part: if is_project { Part::Project } else { Part::Body(Layer::Host) },
        shown: path.display().to_string(),
        stem: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        folder: folder.filter(|_| is_project),
        text,
    }])
}

/// Writes keys and trust into one file that only its owner can read.
pub(super) fn backup(context: &Context, file: &Path, out: Out) -> Result<ExitCode, CliError> {
    let root = context.folder.root();
    if !context.folder.trust().exists() {
        return Err(crate::cli::context::not_up(context));
    }
    let failed = |path: &Path, error: &std::io::Error| {
        CliError::caused(Code::IO, "failed to back up", error).at(path.display().to_string())
    };
    let keys = context.folder.keys();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&keys)
        .map_err(|error| failed(&keys, &error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    let folder = &context.folder;
    paths.extend([folder.root_pin(), folder.trust(), folder.setup(), folder.bus_ca()]);
    paths.sort();
    let mut files = serde_json::Map::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        use base64::Engine as _;
        let bytes = std::fs::read(path).map_err(|error| failed(path, &error))?;
        let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        files.insert(name, text.into());
    }
    let document = json!({"schema": "smgr.backup.v1", "files": files});
    let text = format!("{document:#}\n");
    match write_new(file, text.as_bytes(), 0o600) {
        Ok(true) => {
            out.line(&format!("wrote {}: keep it as safe as the keys that are in it", short(file)));
            Ok(ExitCode::Done)
        }
        Ok(false) => {
            Err(CliError::new(Code::FILE_IN_THE_WAY, "there is a file already").at(short(file)))
        }
        Err(error) => Err(failed(file, &error)),
    }
}
