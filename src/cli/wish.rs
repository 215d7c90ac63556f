//! Builds and signs what is asked: intents and queries.

use std::path::Path;
use std::time::Duration;

use super::context::{Context, note};
use super::error::CliError;
use super::time::now;
use crate::domain::code::Code;
use crate::domain::id::{FleetId, IntentId, Kid, Principal};
use crate::domain::intent::Action;
use crate::domain::policy::Kind;
use crate::domain::time::UnixMicros;
use crate::head::keyfile::{KeyName, LoadKeyError, MakeKeysError, load_key, load_trust};
use crate::wire::codec;
use crate::wire::envelope::{self, seal};
use crate::wire::key::{Keyring, Signer};
use crate::wire::payload::{Ask, Audience, Intent, Mode, PAYLOAD_VERSION, Query};

/// How long an intent may be accepted after it was signed.
pub const INTENT_LIFE: Duration = Duration::from_secs(120);

/// How long a query may be answered after it was signed.
const QUERY_LIFE: Duration = Duration::from_secs(60);

/// Who asks, and whom to believe.
#[derive(Debug)]
pub struct Caller {
    signer: Result<Signer, CliError>,
    /// The fleet of the trust document.
    pub fleet: FleetId,
    /// The keys of the trust document.
    pub ring: Keyring,
    note: String,
}

/// A wish that is ready to be sent, and sent again: the same bytes are the same wish.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Which wish or query it is.
    pub id: IntentId,
    /// Of whom it asks.
    pub audience: Audience,
    /// The envelope.
    pub bytes: Vec<u8>,
}

impl Signed {
    /// Returns until when a wish may be taken; `None` for one that stands for ever.
    pub fn expires(&self) -> Option<UnixMicros> {
        let intent: Intent = envelope::read_kept(&self.bytes, Kind::Intent).ok()?;
        (intent.mode == Mode::Once).then_some(intent.exp)
    }
}

impl Caller {
    /// Takes the keys of the state folder: over the local socket root uses the key that is granted this node alone.
    ///
    /// Without a usable private key readings over the local socket still work.
    ///
    /// # Errors
    /// When there is no trust document, or it does not verify.
    pub fn load(context: &Context, over_socket: bool) -> Result<Self, CliError> {
        if !context.folder.trust().exists() {
            return Err(super::context::not_up(context));
        }
        let (trust, ring) = load_trust(&context.folder).map_err(|error| from_keys(&error))?;
        // A node of a fleet on this machine has no operator of its own.
        let exists = |name: KeyName| name.path(&context.folder).exists();
        let local = over_socket
            && exists(KeyName::Local)
            && (context.is_root || !exists(KeyName::Operator));
        let name = if local { KeyName::Local } else { KeyName::Operator };
        let signer = load_signer(&name.path(&context.folder));
        Ok(Self { signer, fleet: trust.fleet, ring, note: note(context) })
    }

    /// Returns the principal of the key, for the inbox on the bus.
    ///
    /// # Errors
    /// When there is no usable key, or it is not trusted.
    pub fn principal(&self) -> Result<Principal, CliError> {
        let kid = self.signer()?.kid();
        let holder = self.ring.get(kid).map(|(_, holder)| holder.name.clone());
        holder.ok_or_else(|| {
            CliError::new(Code::UNKNOWN_SIGNER, format!("our own key {kid} is not trusted here"))
        })
    }

    /// Signs an intent.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn intent(&self, action: Action, audience: Audience) -> Result<Signed, CliError> {
        self.intent_for(INTENT_LIFE, action, audience)
    }

    /// Signs an intent that may be accepted for so long.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn intent_for(
        &self,
        life: Duration,
        action: Action,
        audience: Audience,
    ) -> Result<Signed, CliError> {
        let signer = self.signer()?;
        let (id, iat) = (random_id()?, now());
        let intent = Intent {
            v: PAYLOAD_VERSION,
            id,
            iss: signer.kid(),
            iat,
            exp: iat.plus_ms(millis(life)),
            fleet: self.fleet.clone(),
            mode: if action.generation().is_some() { Mode::Desired } else { Mode::Once },
            action,
            audience: audience.clone(),
            note: self.note.clone(),
        };
        Ok(Signed { id, audience, bytes: seal(Kind::Intent, &codec::encode(&intent), signer) })
    }

    /// Builds a query: signed for the bus, the bare payload for the local socket.
    ///
    /// # Errors
    /// When it must be signed and there is no usable key.
    pub fn query(&self, ask: Ask, audience: Audience, sign: bool) -> Result<Signed, CliError> {
        let kid = match (&self.signer, sign) {
            (Ok(signer), _) => signer.kid(),
            (Err(error), true) => return Err(error.clone()),
            (Err(_), false) => Kid([0; 16]),
        };
        let (id, iat) = (random_id()?, now());
        let query = Query {
            v: PAYLOAD_VERSION,
            id,
            iss: kid,
            iat,
            exp: iat.plus_ms(millis(QUERY_LIFE)),
            fleet: self.fleet.clone(),
            audience: audience.clone(),
            ask,
        };
        let payload = codec::encode(&query);
        let bytes = match (sign, self.signer()) {
            (true, Ok(signer)) => seal(Kind::Query, &payload, signer),
            _ => payload,
        };
        Ok(Signed { id, audience, bytes })
    }

    fn signer(&self) -> Result<&Signer, CliError> {
        self.signer.as_ref().map_err(CliError::clone)
    }
}

fn load_signer(path: &Path) -> Result<Signer, CliError> {
    load_key(path).map_err(|error| match &error {
        LoadKeyError::Unsafe { .. } => CliError::from_error(Code::NOT_GRANTED, &error),
        LoadKeyError::Missing { .. } | LoadKeyError::Open { .. } => {
            CliError::caused(Code::NOT_GRANTED, "there is no key to command with here", &error)
                .hint("commanding needs the key of the operator, or root on the machine itself")
        }
    })
}

/// Says why the keys of the state folder cannot be used.
pub fn from_keys(error: &MakeKeysError) -> CliError {
    let code = match error {
        MakeKeysError::Write { .. } => Code::IO,
        MakeKeysError::Load(_) => Code::NOT_GRANTED,
        MakeKeysError::Trust { .. } | MakeKeysError::Torn(_) => Code::BAD_SIGNATURE,
    };
    CliError::from_error(code, error)
}

fn random_id() -> Result<IntentId, CliError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| CliError::caused(Code::IO, "the kernel gives no randomness", &error))?;
    Ok(IntentId(id))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
