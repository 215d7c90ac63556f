//! deploy and rollback on one node: a signed wish for a release to that node's own agent.

mod artifact;

pub(crate) use artifact::format_of;

use super::service::{wish, wish_after};
use super::{place, rollout};
use crate::agent::release::Releases;
use crate::cli::args::{Deploy, Planned, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::launch;
use crate::cli::out::Out;
use crate::cli::screen::release::{named, of_manifest};
use crate::cli::selector::Selector;
use crate::cli::time::now;
use crate::config::{self, Part};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Generation, ServiceId};
use crate::domain::intent::Action;
use crate::domain::release::{MANIFEST_VERSION, Manifest, ReleaseId, SPEC_BYTES_MAX};
use crate::domain::selector::Selector as NodeSelector;
use crate::wire::codec;
use crate::wire::payload::Audience;
use crate::wire::status::ReleaseStatus;

/// Lets a service of one node run from a release.
pub(super) async fn deploy(
    context: &Context,
    args: Deploy,
    out: Out,
) -> Result<ExitCode, CliError> {
    let waiting = args.waiting;
    match wanted(context, args, out).await? {
        Wanted::OfFleet(client, wanted) => {
            rollout::deploy(context, *client, wanted, waiting, out).await
        }
        Wanted::OfNode { whom, action, before } => {
            wish_after(context, &whom, action, before.as_deref(), waiting, out).await
        }
    }
}

/// Returns what `deploy` would sign, and for whom.
pub(super) async fn intended(
    context: &Context,
    args: Deploy,
    out: Out,
) -> Result<(Action, Audience), CliError> {
    match wanted(context, args, out).await? {
        Wanted::OfFleet(mut client, wanted) => {
            rollout::intended(context, &mut client, wanted).await
        }
        Wanted::OfNode { whom, action, .. } => {
            let node = whom.only().cloned().map_or_else(|| context.own_node(), Ok)?;
            Ok((action, Audience::Nodes(vec![node])))
        }
    }
}

/// A release, and who is to have it.
enum Wanted {
    OfFleet(Box<Client>, rollout::Wanted),
    OfNode { whom: Whom, action: Action, before: Option<String> },
}

async fn wanted(context: &Context, args: Deploy, out: Out) -> Result<Wanted, CliError> {
    let whom = one_node(context, &args.service)?;
    let service = args.service.service.clone();
    let mut manifest = manifest(context, &service, &args).await?;
    if let Some(client) = fleet(context, &args.service, args.select.as_ref()).await? {
        artifact::share(&client, &mut manifest, &args, out).await;
        let wanted = rollout::Wanted {
            service,
            manifest,
            select: args.select,
            back_to: None,
            emergency: args.emergency,
            retry: None,
            on_conflict: args.on_conflict,
            rollback: false,
        };
        return Ok(Wanted::OfFleet(Box::new(client), wanted));
    }
    if args.emergency.is_some() || args.on_conflict.is_some() {
        let why =
            "--emergency and --on-conflict are about rollouts over a fleet, and this is one node";
        return Err(CliError::new(Code::USAGE, why));
    }
    if args.force {
        let why = "--force is about rollouts over a fleet, and this is one node";
        return Err(CliError::new(Code::USAGE, why).next(format!("smgr restart {}", args.service)));
    }
    let mut client = Client::connect(context, &whom).await?;
    let known = known(&mut client, &service).await?;
    artifact::share(&client, &mut manifest, &args, out).await;
    let action = Action::Deploy {
        service,
        generation: next(known.as_ref()),
        release: codec::encode(&manifest),
        back_to: None,
        emergency: None,
        retry: None,
        on_conflict: None,
        rollback: false,
    };
    Ok(Wanted::OfNode { whom, action, before: before(known.as_ref()) })
}

/// Shows what a deploy over the fleet would do.
pub(super) async fn plan(
    context: &Context,
    planned: Planned,
    out: Out,
) -> Result<ExitCode, CliError> {
    let Planned { services, file, artifact, release_version, set, select, emergency } = planned;
    let ([service], Some(file)) = (&services[..], file) else {
        return Err(CliError::new(Code::USAGE, "a spec is of one service: name it")
            .hint("smgr plan web -f web.toml"));
    };
    let service = Selector::service(service.clone());
    let waiting = Waiting::default();
    let args = Deploy {
        service,
        file,
        artifact,
        release_version,
        set,
        select,
        emergency,
        force: false,
        on_conflict: None,
        waiting,
    };
    let client = fleet(context, &args.service, args.select.as_ref()).await?;
    let client = client.ok_or_else(|| match args.select {
        Some(_) => place::no_fleet(),
        None => CliError::new(
            Code::NO_LEADER,
            "a spec is planned over a fleet, and this machine belongs to none with a controller",
        )
        .hint("what an apply of this node's own files would do: smgr plan"),
    })?;
    let mut manifest = manifest(context, &args.service.service, &args).await?;
    artifact::name_store(&client, &mut manifest, &args);
    let wanted = rollout::Wanted {
        service: args.service.service,
        manifest,
        select: args.select,
        back_to: None,
        emergency: args.emergency,
        retry: None,
        on_conflict: None,
        rollback: false,
    };
    rollout::plan(context, client, wanted, out).await
}

/// Lets a service of this node run from the release that was good before the present one.
pub(super) async fn rollback(
    context: &Context,
    selector: &Selector,
    select: Option<NodeSelector>,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    if let Some(client) = fleet(context, selector, select.as_ref()).await? {
        let service = selector.service.clone();
        return rollout::rollback(context, client, (service, select), waiting, out).await;
    }
    let node = place::of(context, Some(selector), "rollback").await?;
    let whom = one_node(context, &Selector { node, ..selector.clone() })?;
    let service = selector.service.clone();
    let mut client = Client::connect(context, &whom).await?;
    let known = known(&mut client, &service).await?;
    let none = || {
        CliError::new(
            Code::NO_EARLIER_RELEASE,
            format!("{service} has no earlier good release here that its spec lets it go back to"),
        )
        .hint(format!("see what there was: smgr history {service}"))
    };
    let earlier = known.as_ref().and_then(|known| known.earlier).ok_or_else(none)?;
    let release = ReleaseId(earlier);
    // The manifest may hold secrets, so no answer holds it: whoever may roll back may read it where it lies.
    let releases = Releases::new(context.folder.releases());
    let bytes = releases.manifest_bytes(&service, release).ok_or_else(|| {
        CliError::new(
            Code::RELEASE_GONE,
            format!("the manifest of {} cannot be read on this machine", release.short()),
        )
        .hint("run it on the node itself, as root or as the user who runs smgr there")
    })?;
    let action = Action::Deploy {
        service,
        generation: next(known.as_ref()),
        release: bytes,
        back_to: None,
        emergency: None,
        retry: None,
        on_conflict: None,
        rollback: false,
    };
    let before = before(known.as_ref());
    wish_after(context, &whom, action, before.as_deref(), waiting, out).await
}

/// Returns what runs, if it came with a release.
fn before(known: Option<&ReleaseStatus>) -> Option<String> {
    let known = known?;
    Some(named(&known.version, ReleaseId(known.release?)))
}

/// Says which release it was that failed, and what runs instead; each mistake in its spec has a line of its own.
pub(super) fn told(mut error: CliError, action: &Action, before: Option<&str>) -> CliError {
    let Action::Deploy { service, release, .. } = action else { return error };
    let name = format!("{service} {}", of_manifest(release));
    let mut mistakes = mistakes(&error.what);
    if error.exit() == ExitCode::Invalid && mistakes.len() > 1 {
        error.what = format!("{} mistakes in the spec", mistakes.len());
        error.because.append(&mut mistakes);
    }
    error.what = format!("{name}: {}", error.what);
    let goes_on = before.map(|before| match error.code {
        Code::RELEASE_RETURNED => format!("{before} runs again"),
        Code::RETURN_FAILED | Code::NO_WAY_BACK => format!("{before} ran before"),
        _ => format!("{before} goes on"),
    });
    match goes_on {
        Some(goes_on) if error.code != Code::STILL_RUNNING => error.hint(goes_on),
        _ => error,
    }
}

/// Takes apart what an agent says of a spec in one line: `web.toml:3:1: unknown key; web.toml:5:1: …`.
fn mistakes(what: &str) -> Vec<String> {
    let begins = |text: &str| {
        let mut parts = text.splitn(4, ':').skip(1);
        let is_number = |part: Option<&str>| part.is_some_and(|it| it.parse::<u32>().is_ok());
        is_number(parts.next()) && is_number(parts.next())
    };
    let mut mistakes: Vec<String> = Vec::new();
    for piece in what.split("; ") {
        match mistakes.last_mut().filter(|_| !begins(piece)) {
            Some(last) => last.extend(["; ", piece]),
            None => mistakes.push(piece.to_owned()),
        }
    }
    mistakes
}

/// Takes a service from this node that came with a release; `None` when it did not.
pub(super) async fn remove(
    context: &Context,
    service: &ServiceId,
    waiting: Waiting,
    out: Out,
) -> Option<Result<ExitCode, CliError>> {
    let whom = Whom::default();
    let mut client = Client::connect(context, &whom).await.ok()?;
    let known = known(&mut client, service).await.ok().flatten()?;
    known.release?;
    let action = Action::Remove { service: service.clone(), generation: next(Some(&known)) };
    Some(wish(context, &whom, action, waiting, out).await)
}

/// Does something to a service on the nodes of the fleet that are selected, led by a controller.
pub(super) async fn over_fleet(
    context: &Context,
    (service, select): (Selector, NodeSelector),
    action: impl FnOnce(ServiceId, Generation) -> Action,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let client = fleet(context, &service, Some(&select)).await?;
    let client = client.ok_or_else(place::no_fleet)?;
    let whence = (service.service, select);
    rollout::over_fleet(context, client, whence, action, waiting, out).await
}

/// Returns a way to the controllers, unless one node is named or there is none.
async fn fleet(
    context: &Context,
    service: &Selector,
    select: Option<&NodeSelector>,
) -> Result<Option<Client>, CliError> {
    let is_one = service.node.is_some() || !context.global.nodes.is_empty();
    match (is_one, select) {
        (true, Some(_)) => Err(place::named_and_selected()),
        (true, None) => Ok(None),
        (false, None) if !context.folder.trust().exists() => Ok(None),
        (false, _) => match (Client::of_controllers(context).await?, select) {
            (None, Some(_)) => Err(place::no_fleet()),
            (client, _) => Ok(client),
        },
    }
}

fn one_node(context: &Context, selector: &Selector) -> Result<Whom, CliError> {
    if selector.index.is_some() {
        let why = format!("`{selector}` names one instance; a release is of the whole service");
        return Err(CliError::new(Code::BAD_SELECTOR, why));
    }
    Ok(Whom::new(context, selector.node.clone()))
}

/// Returns what the node knows of the releases of a service.
async fn known(
    client: &mut Client,
    service: &ServiceId,
) -> Result<Option<ReleaseStatus>, CliError> {
    let status = launch::status(client).await;
    let unheard = || CliError::new(Code::AGENT_UNREACHABLE, "the node did not say what runs there");
    let releases = status.ok_or_else(unheard)?.releases;
    Ok(releases.into_iter().find(|it| it.service == *service))
}

/// Returns the number of the next wish.
fn next(known: Option<&ReleaseStatus>) -> Generation {
    Generation(known.map_or(0, |known| known.generation.0) + 1)
}

/// Builds the manifest, and says what is wrong with the spec before it is signed.
async fn manifest(
    context: &Context,
    service: &ServiceId,
    args: &Deploy,
) -> Result<Manifest, CliError> {
    let input = config::read_input(&args.file, Part::Override, None)
        .map_err(|mistake| crate::cli::specs::mistaken(&[mistake], "nothing was deployed"))?;
    let spec = config::with_settings(&input.text, &args.set)
        .map_err(|why| CliError::new(Code::BAD_TOML, why).at(input.shown.clone()))?;
    if spec.len() > SPEC_BYTES_MAX {
        let why = format!("the spec has {} bytes, more than {SPEC_BYTES_MAX}", spec.len());
        return Err(CliError::new(Code::FILE_TOO_LARGE, why).at(input.shown));
    }
    let artifact = match &args.artifact {
        Some(source) => Some(artifact::read(context, source).await?),
        None if spec.contains("${release}") => {
            let why = "it says `${release}`, and without an artifact there is no such folder";
            return Err(CliError::new(Code::USAGE, why)
                .at(input.shown)
                .hint("name what it runs: --artifact FILE"));
        }
        None => None,
    };
    let named = args.artifact.as_deref().and_then(|source| artifact::version_in(service, source));
    let hashed = artifact.as_ref().map(|artifact| artifact.sha256.to_string()[..12].to_owned());
    let version = args.release_version.clone().or(named).or(hashed).unwrap_or_default();
    let file = args.file.file_name().and_then(|name| name.to_str());
    Ok(Manifest {
        v: MANIFEST_VERSION,
        service: service.clone(),
        version,
        file: file.unwrap_or("spec.toml").to_owned(),
        spec,
        artifact,
        again: args.force.then(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_of_a_spec_has_a_line_of_its_own() {
        let what = "web.toml:3:1: unknown key; did you mean `exec`; web.toml:5:9: not a size";
        let apart = ["web.toml:3:1: unknown key; did you mean `exec`", "web.toml:5:9: not a size"];
        assert_eq!(mistakes(what), apart);
        assert_eq!(mistakes("it ended; exit 3"), ["it ended; exit 3"]);
    }

    #[test]
    fn a_release_that_was_left_is_named_with_what_runs_again() {
        let (service, generation) = ("web".parse().unwrap(), Generation(2));
        let release = b"not a manifest".to_vec();
        let action = Action::Deploy {
            service,
            generation,
            release,
            back_to: None,
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        };
        let error = CliError::new(Code::RELEASE_RETURNED, "it ended before it was ready (exit 1)");
        let error = told(error, &action, Some("1.0 (4f1c9a7b)"));
        assert_eq!(error.what, "web a4444be7: it ended before it was ready (exit 1)");
        assert_eq!(error.hint.as_deref(), Some("1.0 (4f1c9a7b) runs again"));
    }
}
