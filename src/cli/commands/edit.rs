//! edit, config set: this machine's last word on a service, from an editor or from the command line; only what is right
//! is put in place.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::config::{described, document, is_in_force, only_here, whole_service};
use crate::agent::setup::SpecSources;
use crate::cli::args::ConfigSet;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::out::{Out, width};
use crate::cli::plan::Plan;
use crate::cli::{nats, specs};
use crate::config::{self, Input, Loaded, LoadedService, Part};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::ServiceId;
use crate::head::folder::write_whole;

/// Opens the override file of a service in an editor, checks it together with all other files, and puts it in place.
pub(super) async fn edit(
    context: &Context,
    service: &ServiceId,
    out: Out,
) -> Result<ExitCode, CliError> {
    only_here(context)?;
    let sources = specs::sources_here(context)?;
    let logs = context.service_logs();
    let loaded = specs::load(context, &sources, &logs, "nothing was changed");
    // With a mistake in the very file, this is how to get it out.
    let path = match &loaded {
        Ok(loaded) => place(&sources, service, described(loaded, service)?)?,
        Err(_) => existing(&sources, service).ok_or_else(|| loaded.clone().unwrap_err())?,
    };
    let failed = |what: &str, error: &io::Error| {
        CliError::caused(Code::CANNOT_WRITE, what, error).at(short(&path))
    };
    let before = written(&path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| failed("failed to make the folder", &error))?;
    // Hidden, so that nobody loads it; `.toml`, so that an editor knows what it is.
    let draft = folder.join(format!(".{service}.edit.toml"));
    let left = fs::read_to_string(&draft).ok();
    let first = left.clone().or_else(|| before.clone()).unwrap_or_else(|| template(service));
    write_whole(&draft, first.as_bytes(), 0o600)
        .map_err(|error| failed("failed to write a draft", &error))?;
    if left.is_some() {
        out.note("note: it goes on with what was refused before");
    }
    let ended = open(&draft);
    let text = fs::read_to_string(&draft);
    let drop_draft = || drop(fs::remove_file(&draft));
    if let Err(error) = ended {
        if left.is_none() {
            drop_draft();
        }
        return Err(error);
    }
    let text = text.map_err(|error| failed("failed to read what was edited", &error))?;
    if Some(&text) == before.as_ref() || (before.is_none() && says_nothing(&text)) {
        drop_draft();
        out.line("nothing was changed");
        return Ok(ExitCode::Done);
    }
    check(context, &sources, service, (&path, &text)).map_err(|mut error| {
        let go_on = format!("what you wrote is kept: smgr edit {service} goes on with it\n");
        if let Some(instead) = &mut error.instead {
            instead.screen.push_str(&go_on);
        }
        error
    })?;
    put(service, (&path, before.as_ref()), &text)?;
    drop_draft();
    tell(context, service, &path, out).await?;
    Ok(ExitCode::Done)
}

/// Returns what stands in an override; nothing where there is none yet.
fn written(path: &Path) -> Result<Option<String>, CliError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(CliError::caused(Code::CANNOT_WRITE, "failed to read the override", &error)
                .at(short(path)))
        }
    }
}

/// Changes keys in the override file of a service, checks it together with all other files, and puts it in place.
pub(super) async fn set(
    context: &Context,
    args: &ConfigSet,
    out: Out,
) -> Result<ExitCode, CliError> {
    let is_named = args.service.node.is_some() || !context.global.nodes.is_empty();
    if args.select.is_some() || args.life.is_some() || is_named {
        return super::configure::set(context, args, out).await;
    }
    let service = &args.service.service;
    if args.waiting.detach {
        let what = "a file is written at once: --detach is for --select, --for and SERVICE@NODE";
        return Err(CliError::new(Code::USAGE, what));
    }
    whole_service(&args.service)?;
    let sources = specs::sources_here(context)?;
    let loaded = specs::load(context, &sources, &context.service_logs(), "nothing was changed")?;
    let path = place(&sources, service, described(&loaded, service)?)?;
    let failed = |what: &str, error: &io::Error| {
        CliError::caused(Code::CANNOT_WRITE, what, error).at(short(&path))
    };
    let before = written(&path)?;
    let first = before.clone().unwrap_or_else(|| template(service));
    let text = config::with_settings(&first, &args.settings)
        .map_err(|why| CliError::new(Code::BAD_TOML, why).at(short(&path)))?;
    let changed = check(context, &sources, service, (&path, &text))?;
    if Some(&text) != before.as_ref() {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
            .map_err(|error| failed("failed to make the folder", &error))?;
        put(service, (&path, before.as_ref()), &text)?;
    } else if out.is_text() {
        out.line("nothing was changed");
        return Ok(ExitCode::Done);
    }
    if !out.is_text() {
        let is_set = |key: &str| args.settings.iter().any(|(set, _)| set == key);
        let found = described(&changed, service)?;
        let values: Vec<_> = found.effective.iter().filter(|(key, _)| is_set(key)).collect();
        let in_force = is_in_force(context, None, service, &found.digest.to_string()).await;
        out.json_pretty(&document(service, &values, in_force));
        return Ok(ExitCode::Done);
    }
    tell(context, service, &path, out).await?;
    Ok(ExitCode::Done)
}

/// Checks what an override would be together with all other files.
fn check(
    context: &Context,
    sources: &SpecSources,
    service: &ServiceId,
    (path, text): (&Path, &str),
) -> Result<Loaded, CliError> {
    let edited = Input {
        part: Part::Override,
        shown: path.display().to_string(),
        stem: service.to_string(),
        folder: None,
        text: text.to_owned(),
    };
    let logs = context.service_logs();
    specs::load_with(context, sources, &logs, "nothing was changed", Some(edited))
}

/// Puts an override in place, unless somebody else has written it since it was read.
fn put(
    service: &ServiceId,
    (path, before): (&Path, Option<&String>),
    text: &str,
) -> Result<(), CliError> {
    if fs::read_to_string(path).ok().as_ref() != before {
        let what = "somebody else changed the file meanwhile; nothing was changed";
        return Err(CliError::new(Code::FILE_IN_THE_WAY, what)
            .at(short(path))
            .next(format!("smgr edit {service}")));
    }
    // The agent may have an account of its own, which reads it.
    let mode = fs::metadata(path).map_or(0o644, |about| about.permissions().mode() & 0o777);
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    write_whole(&target, text.as_bytes(), mode).map_err(|error| {
        CliError::caused(Code::CANNOT_WRITE, "failed to write the override", &error).at(short(path))
    })
}

/// Says what was written, and what an apply would do with it.
async fn tell(
    context: &Context,
    service: &ServiceId,
    path: &Path,
    out: Out,
) -> Result<(), CliError> {
    out.line(&format!("wrote {}      in force after: smgr apply {service}", short(path)));
    if let (true, Some(setup)) = (out.is_text(), context.setup()?)
        && let Ok(plan) = Plan::make(context, &setup, std::slice::from_ref(service)).await
    {
        out.data(&plan.text(width()));
    }
    Ok(())
}

/// Returns the override that wins: the machine's where there is one, else that of the folder which describes the service.
fn place(
    sources: &SpecSources,
    service: &ServiceId,
    found: &LoadedService,
) -> Result<PathBuf, CliError> {
    let [of_project, of_machine] = files(sources, service);
    let roots = specs::roots(sources);
    let project = roots.project.map(|path| path.display().to_string());
    let is_of_project = project.is_some() && found.origin.file == project;
    let place = match (of_project, of_machine) {
        (_, Some(machine)) if machine.exists() => Some(machine),
        (Some(project), _) if is_of_project => Some(project),
        (_, machine) => machine,
    };
    place.ok_or_else(|| CliError::new(Code::USAGE, "this node has no folder of overrides"))
}

fn existing(sources: &SpecSources, service: &ServiceId) -> Option<PathBuf> {
    files(sources, service).into_iter().flatten().rev().find(|path| path.exists())
}

/// Returns where an override can be, the lower first.
fn files(sources: &SpecSources, service: &ServiceId) -> [Option<PathBuf>; 2] {
    let roots = specs::roots(sources);
    let file = |folder: PathBuf| folder.join(format!("{service}.toml"));
    [roots.of_project("override.d").map(file), roots.node.map(file)]
}

fn template(service: &ServiceId) -> String {
    format!(
        "# What this machine alone wants of {service} (layer 7). A key here hides that key of all lower layers;\n\
         # what is not said stays as it is. What holds now: smgr config show {service} --origin\n\n"
    )
}

fn says_nothing(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

/// Runs the editor and waits for its end.
fn open(path: &Path) -> Result<(), CliError> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = var("VISUAL").or_else(|| var("EDITOR"));
    let editor = editor.or_else(|| nats::in_path("vi").map(|path| path.display().to_string()));
    let editor = editor.ok_or_else(|| {
        CliError::new(Code::USAGE, "no editor: neither VISUAL nor EDITOR is set").at(short(path))
    })?;
    let mut words = editor.split_whitespace();
    let ended = Command::new(words.next().unwrap_or_default()).args(words).arg(path).status();
    let ended = ended.map_err(|error| {
        CliError::caused(Code::USAGE, format!("failed to start the editor `{editor}`"), &error)
    })?;
    match ended.success() {
        true => Ok(()),
        false => Err(CliError::new(
            Code::USAGE,
            format!("the editor ended with {ended}; nothing was changed"),
        )),
    }
}
