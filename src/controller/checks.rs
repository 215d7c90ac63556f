//! Checks after a wave: measured by whoever leads, judged by the core.

mod program;

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rollouts::Driven;
use super::task::Controller;
use super::wake::{Wake, Waker};
use crate::domain::code::Code;
use crate::domain::id::{AlertName, CheckName, IntentId, NodeId};
use crate::domain::rollout::view::rollout_name;
use crate::domain::rollout::{CheckProbe, Effect, Input, Measure, NodeState, Rollout};
use crate::domain::time::Now;
use crate::head::http::{self, Heard};
use crate::wire::status::AlertStatus;

/// How long a server may take to answer a check.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One measurement: of which rollout, which check, after which wave, and its number.
pub(super) type Measurement = (IntentId, CheckName, u16, u32);

/// The measurements that are under way.
pub(super) type Measuring = BTreeSet<Measurement>;

/// What was measured, and how that is told.
type Found = (Measure, String);

impl Controller {
    /// Says why a check cannot be measured here.
    pub(super) fn is_measured(&self, probe: &CheckProbe) -> Result<(), (Code, String)> {
        match probe {
            CheckProbe::Http { url } => {
                address_of(url).map(drop).map_err(|why| (Code::NOT_YET, why.to_owned()))
            }
            CheckProbe::LogAlert { .. } => Ok(()),
            CheckProbe::Exec { argv } => {
                let named = argv.first().map_or("", String::as_str);
                let found = program::find(self.setup.checks.as_deref(), named);
                found.map(drop).map_err(|why| (Code::BAD_PATH, why))
            }
            CheckProbe::Prometheus { .. } => {
                let why = "checks of kind `prometheus` are known, but not in this version";
                Err((Code::NOT_YET, why.to_owned()))
            }
        }
    }

    /// Measures what is due.
    pub(super) fn look_at_checks(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        let has_checks = |driven: &Driven| {
            let open = driven.on_disk().filter(|state| state.verdict().is_none());
            open.is_some_and(|state| !state.plan().parameters.checks.is_empty())
        };
        let all = self.rollouts.all.iter().filter(|(_, driven)| has_checks(driven));
        for intent in all.map(|(intent, _)| *intent).collect::<Vec<_>>() {
            let state = self.rollouts.all.get(&intent).and_then(Driven::on_disk);
            for effect in state.map(Rollout::due_checks).unwrap_or_default() {
                if let Effect::RunCheck { check, wave, number, at } = effect
                    && at <= now.at
                {
                    self.measure(now, (intent, check, wave, number));
                }
            }
        }
    }

    fn measure(&mut self, now: Now, of: Measurement) {
        let state = self.rollouts.all.get(&of.0).and_then(Driven::on_disk);
        let probe = state.and_then(|it| it.plan().parameters.checks.get(&of.1));
        let (Some(state), Some(probe)) = (state, probe.map(|check| check.probe.clone())) else {
            return;
        };
        match probe {
            CheckProbe::Http { url } => {
                if self.measuring.insert(of.clone()) {
                    tokio::spawn(get(url, of, self.waker.clone()));
                }
            }
            CheckProbe::LogAlert { alert } => {
                let found = self.alert(state, &alert);
                self.measured(now, &of, found);
            }
            CheckProbe::Exec { argv } => {
                let named = argv.first().map_or("", String::as_str);
                match program::find(self.setup.checks.as_deref(), named) {
                    Ok(path) => {
                        let (told, arguments) = (told(state, &of), argv[1..].to_vec());
                        if self.measuring.insert(of.clone()) {
                            let waker = self.waker.clone();
                            tokio::spawn(async move {
                                let found = program::measure(&path, &arguments, told).await;
                                drop(waker.send(Wake::Measured(of, found)).await);
                            });
                        }
                    }
                    // It was there when the rollout began, or at another controller.
                    Err(why) => self.measured(now, &of, (Measure::Error, why)),
                }
            }
            // Refused before the rollout began, by this version.
            CheckProbe::Prometheus { .. } => {
                let why = "it cannot be measured by this version".to_owned();
                self.measured(now, &of, (Measure::Error, why));
            }
        }
    }

    /// Says whether an alert of the service fires on a node that runs the release.
    fn alert(&self, state: &Rollout, alert: &AlertName) -> Found {
        let plan = state.plan();
        let name = format!("{}/{alert}", plan.service);
        let fires = running(state).filter(|node| {
            let known = self.projection.node(node);
            known.is_some_and(|it| {
                AlertStatus::folded(it.services()).iter().any(|it| it.alert == name)
            })
        });
        let fires: Vec<&str> = fires.map(|node| node.as_str()).collect();
        match fires.is_empty() {
            true => (Measure::Good, "quiet".to_owned()),
            false => (Measure::Bad, format!("firing on {}", fires.join(" "))),
        }
    }

    /// Takes in a measurement.
    pub(super) fn measured(&mut self, now: Now, of: &Measurement, found: Found) {
        self.measuring.remove(of);
        let (intent, check, wave, number) = of.clone();
        let (measure, value) = found;
        let input = Input::Check { check, wave, number, measure, value };
        self.drive_on(now, intent, &input);
    }
}

/// Returns the nodes that run the release and are healthy.
fn running(state: &Rollout) -> impl Iterator<Item = &NodeId> {
    state.plan().targets().filter(|node| state.node(node) == Some(NodeState::Healthy))
}

fn told(state: &Rollout, of: &Measurement) -> program::Told {
    program::Told {
        service: state.plan().service.to_string(),
        rollout: rollout_name(of.0),
        release: state.plan().release.to_string(),
        wave: of.2,
        nodes: running(state).map(ToString::to_string).collect(),
    }
}

async fn get(url: String, of: Measurement, waker: Waker) {
    let found = match timeout(ANSWER_WITHIN, heard(&url)).await {
        Ok(Ok(Heard::Status(status))) => {
            let is_good = (200..300).contains(&status);
            (if is_good { Measure::Good } else { Measure::Bad }, status.to_string())
        }
        Ok(Ok(Heard::NotHttp | Heard::Nothing)) => {
            (Measure::Error, "the answer is not HTTP".to_owned())
        }
        Ok(Err(error)) => (Measure::Error, error.to_string()),
        Err(_) => (Measure::Error, format!("no answer within {}s", ANSWER_WITHIN.as_secs())),
    };
    drop(waker.send(Wake::Measured(of, found)).await);
}

/// Returns how a server answers.
async fn heard(url: &str) -> io::Result<Heard> {
    let (host, address, path) = address_of(url).map_err(io::Error::other)?;
    http::ask(&mut TcpStream::connect(&address).await?, &host, &path).await
}

/// Takes `http://host:port/path` apart: the host as a server wants to hear it, where to connect, and the path.
fn address_of(url: &str) -> Result<(String, String, String), &'static str> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is asked in this version")?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_empty() || host.contains(['@', '?', '#']) || !is_plain(host) || !is_plain(path) {
        return Err("not an address of the form http://host:port/path");
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { host.to_owned() } else { format!("{host}:80") };
    Ok((host.to_owned(), address, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_what_is_none_is_refused() {
        let taken = |url: &str| address_of(url).ok().map(|(_, address, path)| (address, path));
        let some = |address: &str, path: &str| Some((address.to_owned(), path.to_owned()));
        assert_eq!(taken("http://lb:8080/ok?x=1"), some("lb:8080", "/ok?x=1"));
        assert_eq!(taken("http://lb"), some("lb:80", "/"));
        for url in ["https://lb/", "http://", "http://a b/", "http://u@h/", "http://lb/\r\nX: y"] {
            assert_eq!(taken(url), None, "{url}");
        }
    }

    #[tokio::test]
    async fn the_status_of_an_answer_is_what_counts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ok", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 503 x\r\n\r\n", "SSH-2.0"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 512];
                assert!(stream.read(&mut asked).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(heard(&url).await.unwrap(), Heard::Status(204));
        assert_eq!(heard(&url).await.unwrap(), Heard::Status(503));
        assert_eq!(heard(&url).await.unwrap(), Heard::NotHttp);
        server.await.unwrap();
    }
}
