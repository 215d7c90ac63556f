//! Rollouts as they are shown: lists, the object of the contract, and the signed wish behind one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::queries::{Asker, refused};
use super::rollouts::Driven;
use super::task::Controller;
use crate::domain::code::Code;
use crate::domain::document::{AsOf, At, By, Sha256};
use crate::domain::event::Actor;
use crate::domain::id::IntentId;
use crate::domain::intent::{ActorKind, Verb};
use crate::domain::rollout::ReleaseId;
use crate::domain::rollout::view::{
    ReleaseView, RolloutRow, RolloutView, RolloutsView, kind_of, rollout_name,
};
use crate::domain::time::UnixMicros;
use crate::head::clock;
use crate::wire::payload::Reply;

/// What one answer holds of something longer, in bytes.
const PIECE_BYTES_MAX: usize = 48 * 1024;

/// Askers that wait for the next fact of a rollout: beyond it they are answered at once and ask again.
const WATCHERS_MAX: usize = 256;

/// The longest wait for the next fact, in milliseconds.
pub(super) const WAIT_MS_MAX: u32 = 30_000;

/// The pause between two pictures of a rollout for those who watch it, and the bytes of one that make it a second longer:
/// thousands of nodes change a rollout hundreds of times a second, and stand in each picture.
const PICTURE_PAUSE: Duration = Duration::from_millis(250);
const PICTURE_BYTES_PER_SECOND: usize = 1024 * 1024;

/// An asker who waits for the next fact of a rollout.
#[derive(Debug)]
pub(super) struct Watcher {
    to: Asker,
    rollout: IntentId,
    seen: usize,
    until: Instant,
}

impl Controller {
    /// Answers with all rollouts that are remembered, newest first.
    pub(super) fn list_rollouts(&self, to: Asker) {
        let mut rows: Vec<_> = self.rollouts.all.iter().filter_map(|it| self.row(it)).collect();
        rows.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let document = RolloutsView {
            schema: RolloutsView::SCHEMA,
            fleet: self.setup.fleet.clone(),
            as_of: self.as_of(),
            rollouts: rows.into_iter().map(|(_, row)| row).collect(),
        };
        self.reply_pieces(to, written(&document));
    }

    /// Answers with one rollout, when more of it is known than the asker has seen, or it has waited long enough.
    pub(super) fn show_rollout(&mut self, to: Asker, name: &str, (seen, wait_ms): (u32, u32)) {
        let rollout = match self.named(name) {
            Ok(rollout) => rollout,
            Err(why) => return self.desk().tell(to, refused(Code::NO_SUCH_ROLLOUT, why)),
        };
        // Read once, so that the release has its name.
        drop(self.wish_of(rollout));
        let seen = usize::try_from(seen).unwrap_or(usize::MAX);
        let until = Instant::now() + Duration::from_millis(u64::from(wait_ms.min(WAIT_MS_MAX)));
        let watcher = Watcher { to, rollout, seen, until };
        let is_over = self.rollouts.all.get(&rollout).is_some_and(Driven::is_over);
        let waits = wait_ms > 0 && self.watchers.len() < WATCHERS_MAX;
        let now = Instant::now();
        if !is_over && waits && self.shown_at(now, &watcher) > now {
            self.watchers.push(watcher);
        } else {
            self.answer_with([watcher]);
        }
    }

    /// Returns when a watcher is answered, as far as is known: `now` where it is at once.
    fn shown_at(&self, now: Instant, watcher: &Watcher) -> Instant {
        match self.rollouts.all.get(&watcher.rollout) {
            Some(driven) if !watcher.to.is_gone() => {
                let told = (driven.told().len(), driven.stands());
                due(now, (watcher.seen, watcher.until), told, driven.show_at)
            }
            _ => now,
        }
    }

    /// Answers with one picture all those who look at the same rollout.
    fn answer_with(&mut self, watchers: impl IntoIterator<Item = Watcher>) {
        let mut pictures: BTreeMap<IntentId, Option<Vec<u8>>> = BTreeMap::new();
        for Watcher { to, rollout, .. } in watchers {
            let view = || self.view(rollout).as_ref().map(written);
            match pictures.entry(rollout).or_insert_with(view) {
                Some(bytes) => self.reply_pieces(to, bytes.clone()),
                None => {
                    let why =
                        format!("the facts of {} are not whole here yet", rollout_name(rollout));
                    self.desk().tell(to, refused(Code::NO_SUCH_ROLLOUT, why));
                }
            }
        }
        for (rollout, bytes) in pictures {
            let pause = pause_after(bytes.map_or(0, |bytes| bytes.len()));
            if let Some(driven) = self.rollouts.all.get_mut(&rollout) {
                driven.show_at = Some(Instant::now() + pause);
            }
        }
    }

    /// Answers those who waited for facts that are there, or for too long.
    pub(super) fn wake_watchers(&mut self) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.watchers);
        let (due, patient): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|watcher| self.shown_at(now, watcher) <= now);
        self.watchers = patient;
        self.answer_with(due);
    }

    /// Returns how long no watcher is answered, as far as is known.
    pub(super) fn watchers_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.watchers.iter().map(|watcher| self.shown_at(now, watcher)).min()?;
        Some(due.saturating_duration_since(now))
    }

    /// Answers with the signed wish behind a rollout: to a controller, and to whoever may deploy the service.
    pub(super) fn show_wish(&mut self, to: Asker, asker: &Actor, of: IntentId) {
        let state = self.rollouts.all.get(&of).and_then(|driven| driven.story.state());
        if let Some(state) = state.filter(|_| asker.kind != ActorKind::Controller) {
            let plan = state.plan();
            let may = self.authority.may(asker, Verb::Deploy, &plan.service, plan.targets());
            if let Err((code, why)) = may {
                return self.desk().tell(to, refused(code, why));
            }
        } else if asker.kind != ActorKind::Controller {
            let why = format!("there is no rollout {}", rollout_name(of));
            return self.desk().tell(to, refused(Code::NO_SUCH_ROLLOUT, why));
        }
        match self.wishes.read(of) {
            Some(bytes) => self.reply_pieces(to, bytes),
            None => {
                let why = format!("the wish behind {} is not here", rollout_name(of));
                self.desk().tell(to, refused(Code::WISH_GONE, why));
            }
        }
    }

    fn reply_pieces(&self, to: Asker, bytes: Vec<u8>) {
        let Asker::Bus(to, cause) = to else {
            return self.desk().tell(to, Reply::Piece { bytes: ByteBuf::from(bytes) });
        };
        let pieces = bytes.chunks(PIECE_BYTES_MAX);
        let count = pieces.len();
        for (part, piece) in pieces.enumerate() {
            let place = (u32::try_from(part).unwrap_or(u32::MAX), part + 1 == count);
            let bytes = ByteBuf::from(piece.to_vec());
            self.reply_part(&to, cause, place, Reply::Piece { bytes });
        }
    }

    /// Finds a rollout by the beginning of its name.
    fn named(&self, name: &str) -> Result<IntentId, String> {
        let begin = name.strip_prefix("r-").unwrap_or(name);
        let fits = |intent: &&IntentId| intent.to_string().starts_with(begin);
        let mut found = self.rollouts.all.keys().filter(fits);
        match (found.next(), found.next()) {
            (Some(intent), None) if !begin.is_empty() => Ok(*intent),
            (Some(first), Some(second)) if !begin.is_empty() => Err(format!(
                "`{name}` is the beginning of {} and {}",
                rollout_name(*first),
                rollout_name(*second)
            )),
            _ => Err(format!("no rollout is called `{name}`")),
        }
    }

    fn as_of(&self) -> AsOf {
        let now = clock::now();
        let missing_nodes = self.projection.away(now);
        AsOf {
            at: Some(At(now.at)),
            source: Some(self.setup.controller.clone()),
            cursor: Some(self.cursor(self.arrivals.durable_count()).to_string()),
            behind_ms: Some(0),
            complete: missing_nodes.is_empty(),
            missing_nodes,
        }
    }

    /// Returns the object `smgr.rollout.v1`, from the facts that are on the disk.
    pub(super) fn view(&self, rollout: IntentId) -> Option<RolloutView> {
        let driven = self.rollouts.all.get(&rollout)?;
        let told: Vec<_> = driven.told().iter().collect();
        let mut view = RolloutView::at(driven.on_disk()?, &told)?;
        let version = |release: ReleaseId| self.version_of(release);
        view.fleet = Some(self.setup.fleet.clone());
        view.as_of = Some(self.as_of());
        view.to.version = version(view.to.digest.0);
        if let Some(from) = &mut view.from {
            from.version = version(from.digest.0);
        }
        view.generation.before = self.generation_before(&view);
        view.plan.rollback.version = view.plan.rollback.to.and_then(|to| version(to.0));
        for on in view.on.iter_mut().chain(view.on_at_end.iter_mut().flatten()) {
            on.version = version(on.digest.0);
        }
        for link in view.why.iter_mut().filter(|link| link.at.is_none()) {
            let event = link.event.parse().ok();
            let said = |event| self.rollouts.reports.failed_at(&view.service, &event);
            link.at = event.and_then(said).map(At);
        }
        self.add_tails(&mut view);
        view.placement = self.placements.view(rollout);
        Some(view)
    }

    /// Returns the generation that the last rollout before this one left behind.
    fn generation_before(&self, view: &RolloutView) -> Option<u64> {
        let all = self.rollouts.of_service(&view.service);
        let earlier = all.iter().filter(|(_, it)| it.plan().generation.0 < view.generation.asked);
        let (intent, state) = earlier.max_by_key(|(_, state)| state.plan().generation)?;
        let has_turned = self.rollouts.all.get(intent)?.has_turned();
        Some(state.plan().generation.0.saturating_add(u64::from(has_turned)))
    }

    /// Returns what people call a release: as a wish says it, or a node that runs it.
    fn version_of(&self, release: ReleaseId) -> Option<String> {
        let told = self.rollouts.all.values().filter_map(|driven| driven.version.as_ref());
        let told = told.filter(|(of, _)| *of == release).map(|(_, version)| version.clone()).next();
        told.or_else(|| self.projection.version_of(release)).filter(|it| !it.is_empty())
    }

    /// Returns when a rollout was planned, and its line in a list.
    fn row(&self, (intent, driven): (&IntentId, &Driven)) -> Option<(UnixMicros, RolloutRow)> {
        let state = driven.on_disk()?;
        let plan = state.plan();
        let (begin, planned) = driven.story.planned()?;
        let release =
            |of: ReleaseId| ReleaseView { digest: Sha256(of), version: self.version_of(of) };
        let ended = state.verdict().and(driven.told().last()).map(|record| At(record.at));
        let row = RolloutRow {
            rollout: rollout_name(*intent),
            id: intent.to_string(),
            service: plan.service.clone(),
            kind: kind_of(plan),
            state: state.state(),
            exit_code: state.exit_code(),
            asked_at: At(begin),
            ended_at: ended,
            targets: plan.size(),
            generation: plan.generation.0,
            release: (kind_of(plan) == "deploy").then_some(Sha256(plan.release)),
            back_to: plan.back_to.map(Sha256),
            from: plan.back_to.map(release),
            to: release(plan.release),
            by: planned.by.as_ref().map(By::from),
        };
        Some((begin, row))
    }
}

/// Returns a document as it is sent.
fn written(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("invariant: documents have names for keys")
}

/// Returns when somebody is answered who has seen so many facts and waits until then, where so many were told, and whether
/// the rollout stands there or goes on.
fn due(
    now: Instant,
    (seen, until): (usize, Instant),
    (told, stands): (usize, bool),
    show_at: Option<Instant>,
) -> Instant {
    match show_at {
        _ if told <= seen => until,
        // Who has seen nothing is at the begin; and nothing is to come soon where it stands.
        Some(at) if seen > 0 && !stands => at.min(until),
        _ => now,
    }
}

/// Returns the pause behind a picture of so many bytes.
fn pause_after(bytes: usize) -> Duration {
    let milliseconds = (bytes as u64).saturating_mul(1000) / PICTURE_BYTES_PER_SECOND as u64;
    PICTURE_PAUSE + Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_gets_the_first_change_and_the_end_at_once_and_some_pictures_a_second_between() {
        let now = Instant::now();
        let (until, next) = (now + Duration::from_secs(3), now + Duration::from_millis(200));
        let due = |seen, told, stands, show_at| due(now, (seen, until), (told, stands), show_at);
        assert_eq!(due(0, 5, false, Some(next)), now, "it has no picture");
        assert_eq!(due(5, 5, false, None), until, "nothing changed");
        assert_eq!(due(5, 6, false, None), now, "the first change");
        assert_eq!(due(5, 6, false, Some(next)), next, "the next one");
        assert_eq!(due(5, 6, true, Some(next)), now, "the end, or a person is awaited");
        assert_eq!(due(5, 6, false, Some(until + PICTURE_PAUSE)), until, "it asked for no longer");
    }

    #[test]
    fn a_large_picture_is_sent_as_often_as_its_bytes_allow() {
        assert_eq!(pause_after(4_000), PICTURE_PAUSE + Duration::from_millis(3));
        let large = pause_after(5 * PICTURE_BYTES_PER_SECOND);
        assert_eq!(large, PICTURE_PAUSE + Duration::from_secs(5));
    }
}
