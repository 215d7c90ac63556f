//! The accounts of the parts, from the files of this machine: the keeper loads no name service.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::ipc::keeper::{Account, Isolation};

/// As whom agent and uplink run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) agent: Option<Account>,
    pub(super) uplink: Option<Account>,
    pub(super) isolation: Isolation,
}

impl Accounts {
    /// Looks the accounts up, if this process is root and the agent's account owns the log in `state`.
    pub(super) fn find(state: &Path) -> Self {
        let none = |why: &str| Self {
            agent: None,
            uplink: None,
            isolation: Isolation::None { why: why.to_owned() },
        };
        if !rustix::process::geteuid().is_root() {
            return none("not started as root");
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        match (account(&passwd, "smgr"), account(&passwd, "smgr-uplink")) {
            (Some(agent), Some(uplink)) => {
                // An agent that cannot write its log would only die again and again.
                if !fs::metadata(state.join("log")).is_ok_and(|log| log.uid() == agent.uid) {
                    return none("the state folder is not divided: smgr down, then smgr up");
                }
                Self { agent: Some(agent), uplink: Some(uplink), isolation: Isolation::Accounts }
            }
            (None, _) => none("no account smgr"),
            (_, None) => none("no account smgr-uplink"),
        }
    }
}

fn account(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    // An account that is root would isolate nothing.
    (uid != 0).then_some(Account { uid, gid, groups: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name_and_is_never_root() {
        let passwd = "smgr-x:x:5:5::/:/x\nsmgr:x:7:8::/:/x\nzero:x:0:0::/:/x\n";
        let account = |name| account(passwd, name).map(|account| (account.uid, account.gid));
        assert_eq!(account("smgr"), Some((7, 8)));
        assert_eq!(account("zero"), None);
        assert_eq!(account("smg"), None);
    }
}
