//! Leading: intents for the controller pass the same gate as in a node, and become rollouts that this controller drives.

use super::queries::refused;
use super::task::Controller;
use crate::domain::code::Code;
use crate::domain::time::Now;
use crate::head::authority::Way;
use crate::wire::subject::Inbox;

impl Controller {
    /// Judges an intent that is meant for the controllers.
    pub(super) fn requested(&mut self, now: Now, reply: Option<Inbox>, bytes: &[u8]) {
        match self.authority.intent(bytes, Way::Bus, now.at) {
            Ok(verified) => {
                let own = |to: &Inbox| *to.principal() == verified.actor.name;
                if let Some(to) = reply.filter(own) {
                    let why = "a controller leads no rollouts in this version".to_owned();
                    self.reply(&to, verified.payload.id, refused(Code::NOT_YET, why));
                }
            }
            Err(refusal) => self.refuse(reply, &refusal),
        }
    }
}
