//! The slots: what runs share one after the other, and how agent and keeper pass it to each other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::{Hands, Reply, kernel, refused};
use crate::ipc::frame::DESCRIPTORS_MAX;
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::{Answer, Channel, Claim, Refusal, SlotName, Spawn};
use crate::keeper::channels::Slot;
use crate::keeper::poller::Poller;
use crate::keeper::run::Tree;
use crate::keeper::vault::Pipes;

/// Slots at one time; each holds three descriptors.
const SLOTS_MAX: usize = 8192;

impl Hands {
    /// Sees to it that a slot has its notify socket, and returns the address.
    pub(super) fn listen(&mut self, spawn: &Spawn) -> io::Result<String> {
        let address = self.notify.address(&spawn.slot)?;
        let slot = self.slots.get_mut(&spawn.slot).expect("the slot was completed in `spawn`");
        if slot.listen(&address, spawn.account.as_ref().map(|account| account.uid))? {
            self.deposit.keep(&spawn.slot, &slot.to_keep());
        }
        address.into_os_string().into_string().map_err(|_| io::ErrorKind::InvalidFilename.into())
    }

    /// Passes duplicates of what a slot and its runs have.
    pub(in crate::keeper) fn take_descriptors(
        &mut self,
        agent: Incarnation,
        name: &SlotName,
    ) -> Reply {
        let slot = match self.slot(name) {
            Ok(slot) => slot,
            Err(refusal) => return refused(refusal),
        };
        let (mut channels, mut passed) = match slot.duplicate() {
            Ok(copies) => copies,
            Err(error) => return refused(kernel("duplicate a channel", &error)),
        };
        slot.known_to = Some(agent);
        let of_slot = || self.runs.iter().filter(|(_, run)| run.slot == *name);
        // Of two runs side by side the one that began last is to become ready; one that was adopted began before.
        let with_pipe = of_slot().map(|(_, run)| run).filter(|run| run.ready.is_some());
        if let Some(ready) =
            with_pipe.max_by_key(|run| run.began_ns).and_then(|run| run.ready.as_ref())
            && let Ok(copy) = ready.try_clone()
        {
            channels.push(Channel::Ready);
            passed.push(copy);
        }
        let mut runs = Vec::new();
        for (run, pidfd) in of_slot().filter_map(|(name, run)| Some((name, run.pidfd()?))) {
            if passed.len() < DESCRIPTORS_MAX
                && let Ok(copy) = pidfd.try_clone()
            {
                runs.push(run.clone());
                passed.push(copy);
            }
        }
        (Answer::Descriptors { channels, runs }, passed)
    }

    /// Takes back what an earlier keeper made.
    pub(in crate::keeper) fn give_descriptors(
        &mut self,
        poller: &Poller,
        slot: &SlotName,
        channels: &[Channel],
        claims: &[Claim],
        descriptors: Vec<OwnedFd>,
    ) -> Reply {
        if channels.len() + claims.len() != descriptors.len() {
            return refused(Refusal::Invalid("not as many descriptors as names".to_owned()));
        }
        let mut descriptors = descriptors.into_iter();
        let mut given: BTreeMap<Channel, OwnedFd> =
            channels.iter().copied().zip(descriptors.by_ref()).collect();
        given.remove(&Channel::Ready);
        if !self.slots.contains_key(slot)
            && let Err(refusal) = self.complete(slot, given)
        {
            return refused(refusal);
        }
        for (claim, pidfd) in claims.iter().zip(descriptors) {
            self.claim(poller, slot, claim, pidfd);
        }
        (Answer::Done, Vec::new())
    }

    /// Closes the channels of a slot.
    pub(in crate::keeper) fn close_slot(&mut self, slot: &SlotName) -> Reply {
        if self.runs.values().any(|run| run.slot == *slot && run.tree != Tree::Gone) {
            return refused(Refusal::SlotInUse);
        }
        self.slots.remove(slot);
        self.orphaned.remove(slot);
        self.sockets.close(slot, &self.deposit);
        self.deposit.forget(slot);
        self.notify.forget(slot);
        (Answer::Done, Vec::new())
    }

    /// Closes the sockets of a slot, as far as no other slot has them.
    pub(in crate::keeper) fn close_sockets(&mut self, slot: &SlotName) -> Reply {
        self.sockets.close(slot, &self.deposit);
        (Answer::Done, Vec::new())
    }

    pub(super) fn slot(&mut self, name: &SlotName) -> Result<&mut Slot, Refusal> {
        if !self.slots.contains_key(name) {
            self.complete(name, Pipes::new())?;
        }
        Ok(self.slots.get_mut(name).expect("the slot was inserted above"))
    }

    /// Makes a slot of what the agent gave; what it did not have, a service may still hold.
    pub(super) fn complete(&mut self, name: &SlotName, mut given: Pipes) -> Result<(), Refusal> {
        if self.slots.len() >= SLOTS_MAX {
            return Err(Refusal::Full);
        }
        for (channel, pipe) in self.orphaned.remove(name).unwrap_or_default() {
            // That one is of a run, which is gone.
            if channel != Channel::Ready {
                given.entry(channel).or_insert(pipe);
            }
        }
        match Slot::complete(&mut given) {
            Ok(slot) => {
                self.deposit.keep(name, &slot.to_keep());
                self.slots.insert(name.clone(), slot);
                Ok(())
            }
            Err(error) => {
                // Whatever service writes into them would stop for ever if another attempt began with new ones.
                self.orphaned.insert(name.clone(), given);
                Err(kernel("complete a slot", &error))
            }
        }
    }
}
