//! Who a user is: names and numbers of this machine.
//!
//! Looked up in `/etc/passwd` and `/etc/group` and nowhere else. The library's own look-up may ask a
//! directory over the network, which would block every restart on this node for as long as that
//! is away. Users of a directory are written by number.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::LaunchFault;
use crate::domain::spec;
use crate::ipc::keeper::Account;

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// What the keeper is told; `None` is its own user.
    pub(super) account: Option<Account>,
    /// The agent's own user.
    pub(super) agent_uid: u32,
    /// Its name, where it has one.
    pub(super) name: Option<String>,
    /// Its home, where it has one.
    pub(super) home: Option<String>,
}

#[derive(Debug, Clone)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone)]
struct Group {
    gid: u32,
    members: Vec<String>,
}

/// A file's identity and age: while these are the same, so is its text.
type Version = (u64, u64, i64, i64);

/// The users and groups of this machine, read again when the files change.
#[derive(Debug)]
pub(super) struct Accounts {
    passwd: PathBuf,
    group: PathBuf,
    versions: Option<(Version, Version)>,
    users: Vec<User>,
    groups: BTreeMap<String, Group>,
    own: (u32, u32),
}

impl Accounts {
    pub(super) fn new() -> Self {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self::of("/etc/passwd".into(), "/etc/group".into(), own)
    }

    fn of(passwd: PathBuf, group: PathBuf, own: (u32, u32)) -> Self {
        let (users, groups) = (Vec::new(), BTreeMap::new());
        Self { passwd, group, versions: None, users, groups, own }
    }

    /// Finds out who `user` is, with its groups and `supplementary` ones.
    pub(super) fn identify(
        &mut self,
        user: Option<&spec::Account>,
        supplementary: &[String],
        keeper_is_root: bool,
    ) -> Result<Identity, LaunchFault> {
        self.refresh()?;
        let agent_uid = self.own.0;
        let Some(user) = user else {
            // `config` refuses it as well; nothing becomes root by omission.
            if keeper_is_root {
                return Err(LaunchFault::ours("user", "root runs smgr, and no user is named"));
            }
            let own = self.users.iter().find(|user| user.uid == agent_uid).cloned();
            let (name, home) = own.map(|own| (own.name, own.home)).unzip();
            return Ok(Identity { account: None, agent_uid, name, home });
        };
        let known = self.user(&user.user).cloned();
        let uid = known.as_ref().map(|known| known.uid).or_else(|| number(&user.user));
        let uid = uid.ok_or_else(|| unknown("user", &user.user, &self.passwd))?;
        let gid = match (&user.group, &known) {
            (Some(group), _) => self.group(group)?,
            (None, Some(known)) => known.gid,
            (None, None) => {
                let why = format!("user {uid} is not in `{}`", self.passwd.display());
                return Err(LaunchFault::ours("user", why + ", so its group has to be named"));
            }
        };
        let mut groups = Vec::new();
        if let Some(known) = &known {
            let member = |group: &&Group| group.members.contains(&known.name);
            groups.extend(self.groups.values().filter(member).map(|group| group.gid));
        }
        for name in supplementary {
            groups.push(self.group(name)?);
        }
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|group| *group != gid);
        let account = Account { uid, gid, groups };
        let (name, home) = known.map(|known| (known.name, known.home)).unzip();
        if keeper_is_root {
            return Ok(Identity { account: Some(account), agent_uid, name, home });
        }
        if (account.uid, account.gid) != self.own {
            return Err(LaunchFault {
                step: "user",
                errno: rustix::io::Errno::PERM.raw_os_error(),
                why: format!("smgr does not run as root and cannot become {user}"),
            });
        }
        Ok(Identity { account: None, agent_uid, name, home })
    }

    fn user(&self, name: &str) -> Option<&User> {
        let by_name = self.users.iter().find(|user| user.name == name);
        by_name.or_else(|| {
            let uid = number(name)?;
            self.users.iter().find(|user| user.uid == uid)
        })
    }

    fn group(&self, name: &str) -> Result<u32, LaunchFault> {
        let by_name = self.groups.get(name).map(|group| group.gid);
        by_name.or_else(|| number(name)).ok_or_else(|| unknown("group", name, &self.group))
    }

    fn refresh(&mut self) -> Result<(), LaunchFault> {
        let look = |path: &Path| {
            version(path).map_err(|error| LaunchFault::io("user", "look at", path, &error))
        };
        let versions = Some((look(&self.passwd)?, look(&self.group)?));
        if versions == self.versions {
            return Ok(());
        }
        let read = |path: &Path| {
            let bytes = fs::read(path);
            let bytes = bytes.map_err(|error| LaunchFault::io("user", "read", path, &error))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        self.users = read(&self.passwd)?.lines().filter_map(user_of).collect();
        self.groups = read(&self.group)?.lines().filter_map(group_of).collect();
        self.versions = versions;
        Ok(())
    }
}

fn version(path: &Path) -> io::Result<Version> {
    let about = fs::metadata(path)?;
    Ok((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
}

fn unknown(what: &str, name: &str, file: &Path) -> LaunchFault {
    LaunchFault::ours("user", format!("no {what} is called `{name}` in `{}`", file.display()))
}

fn number(name: &str) -> Option<u32> {
    // The largest number means "nobody in particular" to the kernel.
    name.parse().ok().filter(|number| *number != u32::MAX)
}

/// Reads `name:password:uid:gid:comment:home:shell`.
fn user_of(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    let (name, home) = ((*name).to_owned(), (*home).to_owned());
    Some(User { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
}

/// Reads `name:password:gid:member,member`.
fn group_of(line: &str) -> Option<(String, Group)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members, ..] = fields.as_slice() else { return None };
    let members = members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Some(((*name).to_owned(), Group { gid: gid.parse().ok()?, members }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          web:x:990:991:Shop:/var/lib/web:/usr/sbin/nologin\n+nis\n";
    const GROUP: &str = "root:x:0:\nweb:x:991:\nssl:x:992:web,mail\nadm:x:4:mail\n";

    fn accounts(dir: &Path) -> Accounts {
        fs::write(dir.join("passwd"), PASSWD).unwrap();
        fs::write(dir.join("group"), GROUP).unwrap();
        Accounts::of(dir.join("passwd"), dir.join("group"), (1000, 1000))
    }

    fn of(user: &str, group: Option<&str>) -> spec::Account {
        spec::Account { user: user.to_owned(), group: group.map(str::to_owned) }
    }

    fn numbers(identity: Result<Identity, LaunchFault>) -> (u32, u32, Vec<u32>) {
        let Account { uid, gid, groups } = identity.unwrap().account.unwrap();
        (uid, gid, groups)
    }

    #[test]
    fn a_user_comes_with_its_own_group_and_those_that_list_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut accounts = accounts(dir.path());
        let web = accounts.identify(Some(&of("web", None)), &["adm".to_owned()], true);
        assert_eq!(web.as_ref().unwrap().home.as_deref(), Some("/var/lib/web"));
        assert_eq!(numbers(web), (990, 991, vec![4, 992]));
        let web = accounts.identify(Some(&of("990", Some("adm"))), &[], true);
        assert_eq!(numbers(web), (990, 4, vec![992]));
    }

    #[test]
    fn a_number_without_a_name_needs_a_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut accounts = accounts(dir.path());
        let numbered = accounts.identify(Some(&of("5000", Some("5001"))), &[], true);
        assert_eq!(numbers(numbered), (5000, 5001, vec![]));
        assert!(accounts.identify(Some(&of("5000", None)), &[], true).is_err());
        assert!(accounts.identify(Some(&of("4294967295", Some("0"))), &[], true).is_err());
    }

    #[test]
    fn an_unknown_user_is_named_with_the_file_that_lacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let fault = accounts(dir.path()).identify(Some(&of("wbe", None)), &[], true).unwrap_err();
        assert_eq!((fault.step, fault.errno), ("user", 0));
        assert!(fault.why.starts_with("no user is called `wbe` in"), "{}", fault.why);
    }

    #[test]
    fn a_user_who_was_added_later_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut accounts = accounts(dir.path());
        assert!(accounts.identify(Some(&of("shop", None)), &[], true).is_err());
        fs::write(dir.path().join("passwd"), format!("{PASSWD}shop:x:7:7::/:/bin/sh\n")).unwrap();
        assert!(accounts.identify(Some(&of("shop", None)), &[], true).is_ok());
    }

    #[test]
    fn without_root_nobody_else_can_be_become_and_with_root_nobody_by_omission() {
        let dir = tempfile::tempdir().unwrap();
        let mut accounts = accounts(dir.path());
        let fault = accounts.identify(Some(&of("web", None)), &[], false).unwrap_err();
        assert_eq!(fault.errno, 1);
        assert!(accounts.identify(Some(&of("1000", Some("1000"))), &[], false).is_ok());
        assert!(accounts.identify(None, &[], false).unwrap().account.is_none());
        assert!(accounts.identify(None, &[], true).is_err());
    }
}
