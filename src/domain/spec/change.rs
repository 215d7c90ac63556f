//! What a changed spec means for the runs that were started from the old one.

use super::Spec;

/// What has to happen to the runs of a service whose spec changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing: the specs are equal.
    Same,
    /// They go on; the new values hold from here on. Slots may be added or taken away.
    InPlace,
    /// They have to be started again, since a process cannot be given what changed.
    Restart,
}

impl Spec {
    /// Says what has to happen to runs of `self` when `next` takes its place.
    pub fn change_to(&self, next: &Self) -> Change {
        // Taken apart by name, so that a field that is added has to be classified.
        let Self {
            description: _,
            owner: _,
            docs: _,
            group: _,
            kind,
            enabled: _,
            exec,
            working_dir,
            user,
            supplementary_groups,
            umask,
            instances: _,
            env_files,
            env,
            credential,
            depends_on: _,
            socket,
            ready: _,
            health: _,
            restart: _,
            stop: _,
            reload: _,
            limits,
            log: _,
            action: _,
            alert: _,
            release,
            verdict: _,
        } = self;
        let process_is_same = *kind == next.kind
            && *exec == next.exec
            && *working_dir == next.working_dir
            && *user == next.user
            && *supplementary_groups == next.supplementary_groups
            && *umask == next.umask
            && *env_files == next.env_files
            && *env == next.env
            && *credential == next.credential
            && *socket == next.socket
            && *limits == next.limits
            && *release == next.release;
        match (self == next, process_is_same) {
            (true, _) => Change::Same,
            (false, true) => Change::InPlace,
            (false, false) => Change::Restart,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spec::Millis;
    use crate::domain::template::Template;

    fn spec() -> Spec {
        let text = |text: &str| Template::new(text);
        Spec::new(vec![text("web")], text("/"), text("/var/log/web/${instance}"))
    }

    #[test]
    fn only_what_a_process_was_given_at_its_start_restarts_it() {
        assert_eq!(spec().change_to(&spec()), Change::Same);

        let mut patient = spec();
        patient.stop.timeout = Millis::from_secs(60);
        patient.instances = 4;
        assert_eq!(spec().change_to(&patient), Change::InPlace);

        let mut other = patient.clone();
        other.env.insert("A".to_owned(), Template::new("1"));
        assert_eq!(patient.change_to(&other), Change::Restart);
    }
}
