//! `smgr demo`: a service to try a fleet with, as a folder of files: its spec, a release, a better one and a bad one.

mod archive;
pub(crate) mod server;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::nats::argument;
use crate::cli::out::Out;
use crate::domain::code::{Code, ExitCode};

/// The spec's name says which service it is.
const SPEC: &str = "web.toml";

/// Writes the folder, which is not there yet or empty.
pub(super) fn demo(context: &Context, folder: &Path, out: Out) -> Result<ExitCode, CliError> {
    let failed = |error: std::io::Error| {
        CliError::caused(Code::CANNOT_WRITE, "the demo cannot be written", &error)
            .at(folder.display().to_string())
    };
    fs::create_dir_all(folder).map_err(failed)?;
    if fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(CliError::new(Code::FILE_IN_THE_WAY, "the folder is not empty")
            .at(folder.display().to_string())
            .hint("name another one, which is made: smgr demo shop2"));
    }
    let here = fs::canonicalize(folder).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let write = |name: &str, bytes: &[u8]| fs::write(here.join(name), bytes).map_err(failed);
    write(SPEC, spec(context, &here).as_bytes())?;
    let releases = [
        ("1.0", good(&program, "1.0")),
        ("1.1", good(&program, "1.1")),
        ("broken", broken(&program)),
    ];
    let mut names = Vec::new();
    for (version, script) in releases {
        let name = format!("web-{version}.tar.gz");
        let bytes = archive::with_program("web", script.as_bytes()).map_err(failed)?;
        write(&name, &bytes)?;
        names.push(name);
    }
    out.line(&format!("wrote {SPEC} and three releases: {}", names.join(", ")));
    Ok(ExitCode::Done)
}

fn spec(context: &Context, folder: &Path) -> String {
    let user = if context.is_root { "user        = \"root\"\n" } else { "" };
    // The node's name is for smgr to put in; everything else in the path stays as it is, which ends with a quote.
    let place = argument(&PathBuf::from(format!("unix:{}/", folder.display())));
    let (place, quote) = place.split_at(place.len() - 1);
    format!(
        "\
# The shop of `smgr demo`. Deploy it on a fleet (smgr up --nodes 3 -d) from this folder:
#
#   smgr deploy web -f web.toml --artifact web-1.0.tar.gz
#   curl --unix-socket n1.sock http://shop/
#
# What an artifact holds: tar -xzOf web-1.1.tar.gz web

description = \"The shop of the demo\"
exec        = [\"${{release}}/web\"]
{user}
[socket.http]
listen = {place}${{node}}.sock{quote}
# smgr holds the socket, so nobody is turned away while one run follows another. Each node of this fleet is on the same
# machine, so each has a socket of its own.

[ready]
by = \"notify\"

[update]
method = \"handover\"                         # the old run ends when the new one is ready

[rollout]
min_healthy_time = \"3s\"                     # so long a node has to be healthy before the next one follows
"
    )
}

fn good(program: &Path, version: &str) -> String {
    format!(
        "\
#!/bin/sh
# Release {version} of the demo's shop: yours would be your program. Here smgr itself answers whoever asks, on the socket that
# it holds for the service and passes to each run as descriptor 3.
{}",
        serves(program, version)
    )
}

fn broken(program: &Path) -> String {
    format!(
        "\
#!/bin/sh
# A release of the demo's shop that wants a setting which nobody made.
if [ -z \"$DATABASE_URL\" ]; then
    echo \"missing DATABASE_URL\" >&2
    exit 1
fi
{}",
        serves(program, "broken")
    )
}

fn serves(program: &Path, version: &str) -> String {
    let program = program.display().to_string().replace('\'', r"'\''");
    format!("exec '{program}' demo-server 'shop {version}' <&3\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_quoted_for_the_shell() {
        let line = serves(Path::new("/opt/ana's/smgr"), "1.0");
        assert_eq!(line, "exec '/opt/ana'\\''s/smgr' demo-server 'shop 1.0' <&3\n");
    }
}
