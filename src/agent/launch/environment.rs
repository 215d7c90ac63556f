//! The environment of a process, clean but for what is named; and its credentials, which may be in it.

use std::collections::BTreeMap;
use std::path::Path;

use super::account::Identity;
use super::folder::RunFolder;
use super::{LaunchFault, Names, NodeFacts, Start, expand};
use crate::config::{load_env_file, read_regular};
use crate::domain::spec::CredentialSource;

/// The largest credential; larger ones are data, not secrets.
const CREDENTIAL_BYTES_MAX: u64 = 1 << 20;

/// All that an environment is made of.
pub(super) struct Environment<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) start: Start<'a>,
    pub(super) identity: &'a Identity,
    pub(super) names: &'a Names<'a>,
    pub(super) folder: &'a RunFolder,
    /// Whether the credentials are put into the folder; what runs beside a service finds them there.
    pub(super) copies_credentials: bool,
}

impl Environment<'_> {
    /// Returns the variables, sorted. Later sources win: ours, files, the specification, smgr.
    pub(super) fn build(self) -> Result<Vec<(String, String)>, LaunchFault> {
        let Self { facts, start: Start { spec, instance, .. }, identity, names, .. } = self;
        let mut env = BTreeMap::new();
        let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
        set("PATH", &facts.path);
        set("LANG", "C.UTF-8");
        set("HOME", identity.home.as_deref().unwrap_or("/"));
        if let Some(name) = &identity.name {
            set("USER", name);
            set("LOGNAME", name);
        }
        for template in &spec.env_files {
            let path = expand("environment", template, names)?;
            env.extend(read_file(Path::new(&path))?);
        }
        for (name, value) in &spec.env {
            env.insert(name.clone(), expand("environment", value, names)?);
        }
        env.extend(self.credentials()?);
        let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
        if !spec.credential.is_empty() {
            set("CREDENTIALS_DIRECTORY", self.folder.credentials().display().to_string());
        }
        set("SMGR_SERVICE", instance.service.to_string());
        set("SMGR_INSTANCE", instance.index.to_string());
        set("SMGR_NODE", facts.node.to_string());
        set("SMGR_FLEET", facts.fleet.to_string());
        Ok(env.into_iter().collect())
    }

    /// Reads the credentials, copies them, and returns those that are wanted as variables.
    fn credentials(&self) -> Result<Vec<(String, String)>, LaunchFault> {
        let mut variables = Vec::new();
        for (name, credential) in &self.start.spec.credential {
            if !self.copies_credentials && credential.env.is_none() {
                continue;
            }
            let CredentialSource::File(template) = &credential.source;
            let path = expand("credential", template, self.names)?;
            let secret = read_regular(Path::new(&path), CREDENTIAL_BYTES_MAX)
                .map_err(|error| LaunchFault::io("credential", "read", Path::new(&path), &error))?;
            if self.copies_credentials {
                self.folder.add_credential(name, &secret, self.identity)?;
            }
            if let Some(variable) = &credential.env {
                let text = String::from_utf8(secret).ok().filter(|text| !text.contains('\0'));
                let text = text.ok_or_else(|| {
                    LaunchFault::ours(
                        "credential",
                        format!("`{name}` is no text, so it cannot be in {variable}"),
                    )
                })?;
                // The line end that every editor leaves is not part of a secret.
                let text = text.strip_suffix('\n').unwrap_or(&text);
                variables.push((variable.clone(), text.to_owned()));
            }
        }
        Ok(variables)
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, LaunchFault> {
    load_env_file(path).map_err(|mistakes| {
        // One is enough to act on, and `smgr check` shows them all; none of them shows a value.
        let first = mistakes.first().map_or_else(String::new, |mistake| mistake.what.clone());
        LaunchFault::ours("environment", format!("`{}`: {first}", path.display()))
    })
}
