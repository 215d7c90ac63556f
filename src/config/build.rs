//! From merged settings to a spec; checks what one key alone cannot say.

mod actions;
mod alerts;
mod health;
mod rollouts;
mod sockets;
mod update;

use std::collections::BTreeMap;

use super::merge::{Merged, wrong_kind};
use super::mistake::Mistake;
use super::read::{self, Typed};
use super::source::Place;
use crate::domain::code::Code;
use crate::domain::id::{ActionName, ServiceId};
use crate::domain::rollout::Rollouts;
use crate::domain::spec::{
    Account, Action, Credential, CredentialSource, DependsOn, Kind, Limits, Log, Millis, Param,
    Percent, Permille, Ready, ReadyBy, Reload, ReloadBy, Restart, RestartPolicy, Spec, Stop,
    Verdict,
};
use crate::domain::template::{Piece, Template};

/// Dependencies of one service. An event that names all that one waits for has to fit its row.
const DEPENDENCIES_MAX: usize = 64;

/// The names that `${name}` may use in a service.
pub(super) const NAMES: &[&str] =
    &["release", "service", "instance", "run", "node", "fleet", "runtime"];

/// What decides, besides the files, what is right.
pub(super) struct Context<'a> {
    /// Where to point when the mistake is that something is not there.
    pub(super) whole: &'a Place,
    /// Whether each service has to say as whom it runs.
    pub(super) user_required: bool,
    /// Where relative paths start; without it they are refused.
    pub(super) folder: Option<&'a str>,
}

/// Builds the spec and what it says about the fleet, or says all that is wrong.
pub(super) fn build(
    merged: &Merged,
    context: &Context<'_>,
) -> Result<(Spec, Rollouts), Vec<Mistake>> {
    let mut builder = Builder { merged, context, mistakes: Vec::new() };
    let (spec, rollouts) = (builder.spec(), rollouts::rollouts(&mut builder));
    match spec {
        Some(spec) if builder.mistakes.is_empty() => Ok((spec, rollouts)),
        _ => Err(builder.mistakes),
    }
}

struct Builder<'a> {
    merged: &'a Merged,
    context: &'a Context<'a>,
    mistakes: Vec<Mistake>,
}

impl Builder<'_> {
    fn spec(&mut self) -> Option<Spec> {
        let merged = self.merged;
        let exec = merged.templates(&["exec"]);
        if exec.is_none() {
            self.missing(&[], "exec", "[\"/usr/bin/program\", \"--flag\"]");
        }
        if self.context.user_required
            && !merged.is_set(&["user"])
            && !merged.was_refused(&[], "user")
        {
            let mistake = self.context.whole.mistake(
                Code::USER_REQUIRED,
                "smgr runs as root here, so a service must say as whom it runs",
            );
            self.mistakes.push(mistake.hint("user = \"web\", or \"root\" where that is meant"));
        }
        let kind: Kind = merged.choice(&["kind"]);
        let umask = match merged.value(&["umask"]) {
            Some(Typed::Mode(mode)) => mode,
            other => wrong_kind(&["umask"], other),
        };
        let env = merged.names(&["env"]).into_iter().filter_map(|name| {
            let value = merged.text(&["env", &name])?;
            Some((name, Template::new(value)))
        });
        let (socket, ready) = (sockets::sockets(self), self.ready());
        sockets::refuse_overlap(self, socket.len(), &ready.by);
        let update = update::update(self, kind, &ready.by);
        let spec = Spec {
            description: merged.text(&["description"]).unwrap_or_default(),
            owner: merged.text(&["owner"]).unwrap_or_default(),
            docs: merged.text(&["docs"]).unwrap_or_default(),
            group: merged.text(&["group"]),
            kind,
            enabled: merged.bool(&["enabled"]),
            working_dir: self.path(&["working_dir"]),
            user: merged.text(&["user"]).map(|text| account(&text)),
            supplementary_groups: merged.texts(&["supplementary_groups"]).unwrap_or_default(),
            umask,
            instances: merged.integer(&["instances"]),
            env_files: self.env_files(),
            env: env.collect(),
            credential: self.credentials(),
            depends_on: self.dependencies(),
            socket,
            ready,
            health: health::checks(self),
            restart: self.restart(kind),
            stop: Stop {
                pre: merged.templates(&["stop", "pre"]),
                pre_timeout: merged.millis(&["stop", "pre_timeout"]),
                drain: merged.millis(&["stop", "drain"]),
                signal: merged.choice(&["stop", "signal"]),
                timeout: merged.millis(&["stop", "timeout"]),
            },
            reload: self.reload(),
            update,
            limits: Limits { oom_score_adjust: merged.integer(&["limits", "oom_score_adjust"]) },
            log: self.log(),
            action: self.actions(),
            alert: alerts::alerts(self),
            release: None,
            verdict: self.verdict(),
            exec: exec.unwrap_or_default(),
        };
        Some(spec)
    }

    fn verdict(&mut self) -> Verdict {
        let merged = self.merged;
        let verdict = Verdict {
            min_healthy_time: merged.millis(&["rollout", "min_healthy_time"]),
            healthy_deadline: merged.millis(&["rollout", "healthy_deadline"]),
            keep: merged.integer(&["release", "keep"]),
            rollback: merged.text(&["release", "rollback"]).is_none_or(|word| word == "allow"),
            by_process: merged.text(&["rollout", "health_check"]).as_deref() == Some("process"),
        };
        if verdict.min_healthy_time >= verdict.healthy_deadline {
            let label = "it could never have been healthy for so long in its time";
            let place = self.place(&["rollout", "min_healthy_time"]);
            let mistake = place.mistake(Code::CONTRADICTION, label);
            self.mistakes.push(mistake.hint("make `healthy_deadline` longer than it"));
        }
        verdict
    }

    fn place(&self, path: &[&str]) -> &Place {
        (0..=path.len())
            .rev()
            .find_map(|len| self.merged.place(&path[..len]))
            .unwrap_or(self.context.whole)
    }

    fn missing(&mut self, block: &[&str], key: &str, example: &str) {
        if self.merged.was_refused(block, key) {
            return;
        }
        let label = match block {
            [] => format!("`{key}` is missing"),
            _ => format!("[{}] needs `{key}`", block.join(".")),
        };
        let mistake = self.place(block).mistake(Code::MISSING_KEY, label);
        self.mistakes.push(mistake.hint(format!("{key} = {example}")));
    }

    fn contradiction(&mut self, path: &[&str], label: String, hint: &str) {
        let mistake = self.place(path).mistake(Code::CONTRADICTION, label).hint(hint);
        self.mistakes.push(mistake);
    }

    /// Returns a path that is absolute: as written, or from the project's folder on.
    fn path(&mut self, path: &[&str]) -> Template {
        let text = self.merged.text(path).unwrap_or_default();
        self.absolute(path, &text)
    }

    fn absolute(&mut self, path: &[&str], text: &str) -> Template {
        // What a name stands for is an absolute path, or the rest would not be one either.
        let folders = ["/", "${runtime}", "${release}"];
        if folders.iter().any(|folder| text.starts_with(folder)) {
            return Template::new(text);
        }
        match self.context.folder {
            Some(folder) => {
                let folder = Template::literal(folder);
                let rest = text.strip_prefix("./").unwrap_or(text);
                match rest {
                    "" | "." => folder,
                    rest => Template::new(format!("{}/{rest}", folder.as_str())),
                }
            }
            None => {
                let mistake = self.place(path).mistake(Code::BAD_PATH, "not an absolute path");
                self.mistakes.push(mistake.hint("start it with `/`"));
                Template::new(text)
            }
        }
    }

    fn env_files(&mut self) -> Vec<Template> {
        let files = self.merged.texts(&["env_files"]).unwrap_or_default();
        files.iter().map(|file| self.absolute(&["env_files"], file)).collect()
    }

    fn credentials(&mut self) -> BTreeMap<String, Credential> {
        let mut all = BTreeMap::new();
        for name in self.merged.names(&["credential"]) {
            let block = ["credential", name.as_str()];
            if !self.merged.is_set(&["credential", &name, "source"]) {
                self.missing(&block, "source", "\"file:/absolute/path\"");
                continue;
            }
            let source = CredentialSource::File(self.path(&["credential", &name, "source"]));
            let env = self.merged.text(&["credential", &name, "env"]);
            if let Some(variable) = &env
                && self.merged.is_set(&["env", variable])
            {
                let label = format!("`{variable}` is set in [env] as well");
                self.contradiction(
                    &["credential", &name, "env"],
                    label,
                    "a variable has one value: take one of the two out",
                );
            }
            all.insert(name, Credential { source, env });
        }
        all
    }

    fn dependencies(&mut self) -> BTreeMap<ServiceId, DependsOn> {
        let merged = self.merged;
        let names = merged.names(&["depends_on"]);
        if names.len() > DEPENDENCIES_MAX {
            let label = format!("more than {DEPENDENCIES_MAX} dependencies");
            let mistake = self.place(&["depends_on"]).mistake(Code::TOO_MANY, label);
            self.mistakes.push(mistake.hint("depend on one service that depends on the others"));
            return BTreeMap::new();
        }
        names
            .into_iter()
            .filter_map(|name| {
                let depends_on = DependsOn {
                    condition: merged.choice(&["depends_on", &name, "condition"]),
                    required: merged.bool(&["depends_on", &name, "required"]),
                    restart: merged.bool(&["depends_on", &name, "restart"]),
                };
                Some((name.parse().ok()?, depends_on))
            })
            .collect()
    }

    fn ready(&mut self) -> Ready {
        let by = self.merged.text(&["ready", "by"]).unwrap_or_default();
        let sign = match by.as_str() {
            "notify" => ReadyBy::Notify,
            "fd" => match self.merged.is_set(&["ready", "fd"]) {
                true => ReadyBy::Fd(self.merged.integer(&["ready", "fd"])),
                false => {
                    self.missing(&["ready"], "fd", "3");
                    ReadyBy::Started
                }
            },
            "log" => match self.merged.text(&["ready", "match"]) {
                Some(pattern) => ReadyBy::Log(pattern),
                None => {
                    self.missing(&["ready"], "match", "'ready to accept'");
                    ReadyBy::Started
                }
            },
            "health" => ReadyBy::Health,
            _ => ReadyBy::Started,
        };
        // By a default that stands for what was refused, nothing is measured.
        let is_known = !self.merged.is_refused(&["ready", "by"]);
        for (key, needed) in [("match", "log"), ("fd", "fd")] {
            if self.merged.is_set(&["ready", key]) && by != needed && is_known {
                let label = format!("`{key}` is only for by = \"{needed}\", and by is \"{by}\"");
                let hint = format!("by = \"{needed}\", or take `{key}` out");
                self.contradiction(&["ready", key], label, &hint);
            }
        }
        Ready { by: sign, timeout: self.positive(&["ready", "timeout"]) }
    }

    fn positive(&mut self, path: &[&str]) -> Millis {
        let length = self.merged.millis(path);
        if length == Millis(0) {
            let mistake = self.place(path).mistake(Code::OUT_OF_RANGE, "zero is out of range");
            self.mistakes.push(mistake.hint("every wait needs a deadline that can be met"));
        }
        length
    }

    fn restart(&mut self, kind: Kind) -> Restart {
        let merged = self.merged;
        let policy = match (merged.is_set(&["restart", "policy"]), kind) {
            (true, _) => merged.choice(&["restart", "policy"]),
            (false, Kind::Daemon) => RestartPolicy::Always,
            (false, Kind::Oneshot) => RestartPolicy::OnFailure,
        };
        if (policy, kind) == (RestartPolicy::Always, Kind::Oneshot) {
            self.contradiction(
                &["restart", "policy"],
                "a oneshot that is always restarted never completes".to_owned(),
                "policy = \"on_failure\", or kind = \"daemon\"",
            );
        }
        let (Some(Typed::Thousandths(factor)), Some(Typed::Percent(jitter))) =
            (merged.value(&["restart", "factor"]), merged.value(&["restart", "jitter"]))
        else {
            wrong_kind(&["restart"], None)
        };
        let restart = Restart {
            policy,
            delay: merged.millis(&["restart", "delay"]),
            factor: Permille(factor),
            max_delay: merged.millis(&["restart", "max_delay"]),
            jitter: Percent(jitter),
            stable_after: merged.millis(&["restart", "stable_after"]),
            limit: merged.integer(&["restart", "limit"]),
            limit_window: self.positive(&["restart", "limit_window"]),
            on_limit: merged.choice(&["restart", "on_limit"]),
            success_codes: merged.codes(&["restart", "success_codes"]),
            fatal_codes: merged.codes(&["restart", "fatal_codes"]),
        };
        if restart.delay > restart.max_delay {
            let at = if merged.is_set(&["restart", "max_delay"]) { "max_delay" } else { "delay" };
            self.contradiction(
                &["restart", at],
                "`delay` is longer than `max_delay`".to_owned(),
                "the first delay is `delay`, the last is `max_delay`",
            );
        }
        if let Some(code) = restart.fatal_codes.iter().find(|c| restart.success_codes.contains(c)) {
            self.contradiction(
                &["restart", "fatal_codes"],
                format!("{code} is in `success_codes` as well"),
                "an exit is a success or fatal, not both",
            );
        }
        restart
    }

    fn reload(&mut self) -> Reload {
        let merged = self.merged;
        let by = merged.text(&["reload", "by"]).unwrap_or_default();
        let signal = merged.choice(&["reload", "signal"]);
        let exec = merged.templates(&["reload", "exec"]);
        let way = match (by.as_str(), exec) {
            ("signal", _) => ReloadBy::Signal(signal),
            ("notify", _) => ReloadBy::Notify(signal),
            ("exec", Some(exec)) => ReloadBy::Exec(exec),
            ("exec", None) => {
                self.missing(&["reload"], "exec", "[\"/usr/bin/program\", \"reload\"]");
                ReloadBy::None
            }
            _ => ReloadBy::None,
        };
        let is_known = !merged.is_refused(&["reload", "by"]);
        for (key, needed) in [("signal", ["signal", "notify"]), ("exec", ["exec", "exec"])] {
            if merged.is_set(&["reload", key]) && !needed.contains(&by.as_str()) && is_known {
                let label = format!("`{key}` has no effect while by is \"{by}\"");
                let hint = format!("by = \"{}\", or take `{key}` out", needed[0]);
                self.contradiction(&["reload", key], label, &hint);
            }
        }
        Reload { by: way, timeout: self.positive(&["reload", "timeout"]) }
    }

    fn log(&mut self) -> Log {
        let merged = self.merged;
        let Some(Typed::Rate(rate_limit)) = merged.value(&["log", "rate_limit"]) else {
            wrong_kind(&["log", "rate_limit"], None)
        };
        for (key, least) in [("max_size", 4096), ("max_line", 256)] {
            if merged.bytes(&["log", key]).0 < least {
                let label = format!("`{key}` is at least {least} bytes");
                let mistake = self.place(&["log", key]).mistake(Code::OUT_OF_RANGE, label);
                self.mistakes
                    .push(mistake.hint(format!("{key} = \"{}KiB\"", least.div_ceil(1024))));
            }
        }
        if merged.bytes(&["log", "max_line"]).0 > 1 << 20 {
            let mistake = self
                .place(&["log", "max_line"])
                .mistake(Code::OUT_OF_RANGE, "`max_line` is at most 1 MiB");
            self.mistakes.push(mistake.hint("longer lines are split and marked, not lost"));
        }
        let dir = self.path(&["log", "dir"]);
        let instances: u16 = merged.integer(&["instances"]);
        let names = |name| {
            let pieces = dir.pieces().unwrap_or_default();
            pieces.iter().any(|(_, piece)| *piece == Piece::Name(name))
        };
        let names_instance = names("instance");
        if names("run") || names("runtime") {
            self.contradiction(
                &["log", "dir"],
                "a log is of an instance, not of one run".to_owned(),
                "take ${run} and ${runtime} out; each line has its time",
            );
        }
        if instances > 1 && !names_instance {
            self.contradiction(
                &["log", "dir"],
                format!("{instances} instances would write one file"),
                "put ${instance} into the path",
            );
        }
        Log {
            dir,
            format: merged.choice(&["log", "format"]),
            max_size: merged.bytes(&["log", "max_size"]),
            max_files: merged.integer(&["log", "max_files"]),
            max_age: self.positive(&["log", "max_age"]),
            compress: merged.choice(&["log", "compress"]),
            max_line: merged.bytes(&["log", "max_line"]),
            rate_limit,
            on_full: merged.choice(&["log", "on_full"]),
            tail_lines: merged.integer(&["log", "tail_lines"]),
            redact: merged.texts(&["log", "redact"]).unwrap_or_default(),
            forward: merged.choice(&["log", "forward"]),
        }
    }

    fn actions(&mut self) -> BTreeMap<ActionName, Action> {
        let mut all = BTreeMap::new();
        for name in self.merged.names(&["action"]) {
            let Some(exec) = self.merged.templates(&["action", &name, "exec"]) else {
                self.missing(&["action", &name], "exec", "[\"/usr/bin/program\", \"${param}\"]");
                continue;
            };
            let params = self.params(&name);
            for used in exec.iter().filter_map(|template| template.pieces().ok()).flatten() {
                let (_, Piece::Name(used)) = used else { continue };
                if !NAMES.contains(&used) && !params.contains_key(used) {
                    let known = NAMES.iter().copied().chain(params.keys().map(String::as_str));
                    let place = self.place(&["action", &name, "exec"]);
                    let mistake = read::unknown_name(used, known, place);
                    self.mistakes.push(mistake);
                }
            }
            actions::batches(self, &name);
            let action = Action {
                timeout: self.positive(&["action", &name, "timeout"]),
                user: self.merged.text(&["action", &name, "user"]).map(|text| account(&text)),
                idempotent: self.merged.bool(&["action", &name, "idempotent"]),
                confirm: self.merged.bool(&["action", &name, "confirm"]),
                after_deploy: actions::after_deploy(self, &name, &params),
                exec,
                params,
            };
            if let Ok(name) = name.parse() {
                all.insert(name, action);
            }
        }
        all
    }

    fn params(&mut self, action: &str) -> BTreeMap<String, Param> {
        let names = self.merged.names(&["action", action, "params"]);
        names
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.param(action, &name)?)))
            .collect()
    }

    fn param(&mut self, action: &str, name: &str) -> Option<Param> {
        let at = |key: &'static str| ["action", action, "params", name, key];
        if self.merged.is_refused(&at("type")) {
            // Its name is known all the same.
            return Some(Param::String { pattern: None, default: None });
        }
        let kind = self.merged.text(&at("type")).unwrap_or_default();
        let allowed: &[&str] = match kind.as_str() {
            "integer" => &["min", "max"],
            "bool" => &[],
            _ => &["pattern"],
        };
        for key in ["pattern", "min", "max"] {
            if self.merged.is_set(&at(key)) && !allowed.contains(&key) {
                let label = format!("`{key}` does not go with type = \"{kind}\"");
                let hint = "pattern is for strings, min and max are for integers";
                self.contradiction(&at(key), label, hint);
            }
        }
        let integer = |key| match self.merged.value(&at(key)) {
            Some(Typed::Integer(number)) => Some(number),
            _ => None,
        };
        let default = self.merged.value(&at("default"));
        let param = match (kind.as_str(), default) {
            ("string", None) => {
                Param::String { pattern: self.merged.text(&at("pattern")), default: None }
            }
            ("string", Some(Typed::Text(default))) => {
                Param::String { pattern: self.merged.text(&at("pattern")), default: Some(default) }
            }
            ("integer", None) => {
                Param::Integer { min: integer("min"), max: integer("max"), default: None }
            }
            ("integer", Some(Typed::Integer(default))) => {
                Param::Integer { min: integer("min"), max: integer("max"), default: Some(default) }
            }
            ("bool", None) => Param::Bool { default: None },
            ("bool", Some(Typed::Bool(default))) => Param::Bool { default: Some(default) },
            (_, _) => {
                let label = format!("the default is not of type \"{kind}\"");
                let mistake = self.place(&at("default")).mistake(Code::WRONG_TYPE, label);
                self.mistakes.push(mistake.hint("give a value that the type takes"));
                return None;
            }
        };
        if let Param::Integer { min: Some(min), max: Some(max), .. } = param
            && min > max
        {
            let label = "`min` is greater than `max`".to_owned();
            self.contradiction(&at("min"), label, "no number fits");
        }
        if let Some(default) = super::params::default_text(&param)
            && let Err(why) = super::params::check(&param, &default)
        {
            self.contradiction(&at("default"), format!("the default {why}"), "give one that fits");
        }
        Some(param)
    }
}

fn account(text: &str) -> Account {
    match text.split_once(':') {
        Some((user, group)) => Account { user: user.to_owned(), group: Some(group.to_owned()) },
        None => Account { user: text.to_owned(), group: None },
    }
}
