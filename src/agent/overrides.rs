//! What signed wishes set of services, as layers of their configuration.
//!
//! What is in force follows from the log, and the values lie beside it. The command line has no fold, so what is in force is
//! written down for it as well; nothing is decided by that.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::folder::write_whole;
use super::texts::Reading;
use crate::config::{self, Input};
use crate::domain::document::rfc3339;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::origin::Layer;
use crate::domain::overrides::{Override, Overrides, Settings, read_text};

/// Larger than all that is set on a node; more is not read.
const BYTES_MAX: u64 = 64 << 20;

/// What one wish set of one service, as far as it is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetBy {
    service: ServiceId,
    layer: Layer,
    /// Which wish, whose, and until when: how the origin of a value is shown.
    event: String,
    set: Settings,
}

impl SetBy {
    /// Returns it as a file of its layer; `None` where its keys are none, as of a later version.
    pub fn input(&self) -> Option<Input> {
        match self.checked() {
            Ok(input) => Some(input),
            Err(why) => {
                error!(service = %self.service, why, "what a wish set cannot be read");
                None
            }
        }
    }

    /// Returns it as a file of its layer, or what is wrong with its keys.
    pub(super) fn checked(&self) -> Result<Input, String> {
        let set: Vec<_> =
            self.set.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        config::set_layer(self.layer, &self.event, &self.service, &set)
    }
}

/// Returns what is set, the lower layer and the older wish first. `new` has what is not beside the log yet.
pub(super) fn all_set(
    overrides: &BTreeMap<ServiceId, Overrides>,
    texts: &Reading,
    new: Option<(Digest, &Settings)>,
) -> Vec<SetBy> {
    let mut all = Vec::new();
    for (service, known) in overrides {
        let mut by: BTreeMap<_, SetBy> = BTreeMap::new();
        for (layer, key, it) in known.in_force() {
            let Some(digest) = it.text else { continue };
            let kept = || texts.get(digest).and_then(|text| read_text(&text));
            let set = match new.filter(|(of, _)| *of == digest) {
                Some((_, set)) => Some(set.clone()),
                None => kept(),
            };
            let Some(value) = set.and_then(|mut set| set.remove(key)) else {
                error!(%service, key, "what was set is lost: set it again");
                continue;
            };
            let made = || SetBy {
                service: service.clone(),
                layer,
                event: shown(it),
                set: Settings::new(),
            };
            let wish = by.entry((layer, it.generation, it.intent)).or_insert_with(made);
            wish.set.insert(key.clone(), value);
        }
        all.extend(by.into_values());
    }
    all
}

/// Returns how the origin of a value is shown: `i-4f1c9a7b by ana until 2026-11-23T12:00:00.000Z`.
fn shown(it: &Override) -> String {
    let by = it.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let until = it.until.map(|until| format!(" until {}", rfc3339(until))).unwrap_or_default();
    format!("i-{}{by}{until}", &it.intent.to_string()[..8])
}

/// Writes down what is in force, in the folder of texts.
pub(super) fn write_down(specs: &Path, all: &[SetBy]) {
    let path = specs.join("overrides");
    if all.is_empty() && !path.exists() {
        return;
    }
    let text = serde_json::to_vec(all).expect("invariant: a list of texts is JSON");
    if std::fs::read(&path).is_ok_and(|there| there == text) {
        return;
    }
    if let Err(why) = write_whole(&path, &text, 0o600) {
        warn!(%why, "what is set is not written down for the command line");
    }
}

/// Reads what was written down, as files of their layers.
pub fn written_down(specs: &Path) -> Vec<Input> {
    let text = config::read_regular(&specs.join("overrides"), BYTES_MAX).ok();
    let all: Option<Vec<SetBy>> = text.and_then(|text| serde_json::from_slice(&text).ok());
    all.into_iter().flatten().filter_map(|it| it.input()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::texts::Texts;
    use crate::domain::id::{Generation, IntentId};
    use crate::domain::overrides::{ConfigChanged, text_of};
    use crate::domain::time::UnixMicros;

    #[test]
    fn what_wishes_set_is_a_layer_each_that_names_the_wish_and_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let set = |keys: &[(&str, &str)]| -> Settings {
            keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let fleet = set(&[("env.A", "1"), ("stop.timeout", "4s")]);
        let (node, temporary) = (set(&[("env.A", "3")]), set(&[("env.A", "2")]));
        let mut overrides = Overrides::default();
        for (number, layer, set, until) in [
            (1, Layer::Fleet, &fleet, None),
            (2, Layer::Temporary, &temporary, Some(UnixMicros(0))),
            (3, Layer::Node, &node, None),
        ] {
            let body = ConfigChanged {
                intent: IntentId([number; 16]),
                layer,
                generation: (layer == Layer::Fleet).then_some(Generation(1)),
                set: set.keys().cloned().collect(),
                unset: Default::default(),
                text: text_of(set).1,
                until,
            };
            overrides.change(&body, Some(&"ana".parse().unwrap()));
        }
        let texts = Texts::new(folder.path().to_owned());
        for set in [&fleet, &node] {
            let (text, digest) = text_of(set);
            texts.keep(&BTreeMap::from([(digest, text.as_str())])).unwrap();
        }
        let overrides = BTreeMap::from([("web".parse().unwrap(), overrides)]);
        let new = (text_of(&temporary).1, &temporary);
        let all = all_set(&overrides, &texts.reading(), Some(new));
        let shown: Vec<_> = all.iter().map(|it| (it.layer.number(), it.event.as_str())).collect();
        let end = "i-02020202 by ana until 1970-01-01T00:00:00.000Z";
        assert_eq!(shown, [(6, "i-01010101 by ana"), (7, "i-03030303 by ana"), (8, end)]);
        write_down(folder.path(), &all);
        let read: Vec<String> = written_down(folder.path()).into_iter().map(|it| it.text).collect();
        assert!(read[0].contains("timeout = \"4s\"") && read[1].contains("A = \"3\""), "{read:?}");
        assert!(read[2].contains("A = \"2\""), "{read:?}");
    }
}
