//! The alerts of a service: what one key alone cannot say about them.

use std::collections::BTreeMap;

use super::Builder;
use crate::config::pattern;
use crate::domain::code::Code;
use crate::domain::id::AlertName;
use crate::domain::spec::{Alert, AlertOn, Millis};
use crate::domain::template::Template;

/// How many alerts a service may have: each is looked for in every line.
const ALERTS_MAX: usize = 64;

/// How many labels, and how many annotations, an alert may have.
const TEXTS_MAX: usize = 16;

/// How long one of them may be, in bytes, so that an event of an alert stays far below its cap.
const TEXT_BYTES_MAX: usize = 512;

/// What smgr itself calls an alert.
const OWN: &str = "restart-limit";

/// The shortest length of time that alerts count in.
const SECOND: Millis = Millis::from_secs(1);

pub(super) fn alerts(builder: &mut Builder<'_>) -> BTreeMap<AlertName, Alert> {
    let mut all = BTreeMap::new();
    let names = builder.merged.names(&["alert"]);
    if names.len() > ALERTS_MAX {
        let label = format!("more than {ALERTS_MAX} alerts");
        let mistake = builder.place(&["alert"]).mistake(Code::TOO_MANY, label);
        builder.mistakes.push(mistake.hint("one pattern can look for several things: `a|b`"));
        return all;
    }
    for name in names {
        if name == OWN {
            let label = format!("`{OWN}` is what smgr calls its own alert");
            let mistake = builder.place(&["alert", &name]).mistake(Code::BAD_NAME, label);
            builder.mistakes.push(mistake.hint("choose another name"));
        } else if let (Some(alert), Ok(name)) = (alert(builder, &name), name.parse()) {
            all.insert(name, alert);
        }
    }
    if let Err(why) = pattern::alert_set(all.values().map(|alert| alert.r#match.as_str())) {
        let label = format!("the patterns of all alerts do not go together: {why}");
        let mistake = builder.place(&["alert"]).mistake(Code::BAD_REGEX, label);
        builder.mistakes.push(mistake.hint("make them simpler: `\\w{500}` is 500 times `\\w`"));
    }
    all
}

fn alert(builder: &mut Builder<'_>, name: &str) -> Option<Alert> {
    let merged = builder.merged;
    let at = |key: &'static str| ["alert", name, key];
    for (key, example) in [("on", "\"log\""), ("match", "'ERROR'")] {
        if !merged.is_set(&at(key)) {
            builder.missing(&["alert", name], key, example);
        }
    }
    let (on, pattern) = (merged.text(&at("on"))?, merged.text(&at("match"))?);
    let lasts = merged.millis(&at("for"));
    let on = if on == "absence" {
        for key in ["threshold", "window"] {
            if merged.is_set(&at(key)) {
                let label = format!("`{key}` is only for on = \"log\"");
                let hint = "for = \"10m\" says how long no line may come";
                builder.contradiction(&at(key), label, hint);
            }
        }
        if lasts < SECOND {
            let label = "for absence, `for` is at least a second".to_owned();
            builder.contradiction(&at("for"), label, "for = \"10m\"");
        }
        AlertOn::Absence
    } else {
        let window = merged.millis(&at("window"));
        if window < SECOND {
            let label = "`window` is at least a second".to_owned();
            builder.contradiction(&at("window"), label, "window = \"1m\"");
        }
        AlertOn::Log { threshold: merged.integer(&at("threshold")), window }
    };
    let annotations = texts(builder, name, "annotations");
    Some(Alert {
        on,
        r#match: pattern,
        exclude: merged.text(&at("exclude")),
        stream: merged.choice(&at("stream")),
        r#for: lasts,
        keep_firing_for: merged.millis(&at("keep_firing_for")),
        severity: merged.choice(&at("severity")),
        labels: texts(builder, name, "labels"),
        annotations: annotations.into_iter().map(|(k, v)| (k, Template::new(v))).collect(),
    })
}

fn texts(builder: &mut Builder<'_>, name: &str, block: &'static str) -> BTreeMap<String, String> {
    let path = ["alert", name, block];
    let merged = builder.merged;
    let text = |key: String| {
        let text = merged.text(&["alert", name, block, &key])?;
        Some((key, text))
    };
    let texts: BTreeMap<_, _> = merged.names(&path).into_iter().filter_map(text).collect();
    if texts.len() > TEXTS_MAX {
        let label = format!("more than {TEXTS_MAX} {block}");
        let mistake = builder.place(&path).mistake(Code::TOO_MANY, label);
        builder.mistakes.push(mistake.hint("put what is longer into the runbook, `docs`"));
    }
    let is_long = |text: &str| text.len() > TEXT_BYTES_MAX;
    if let Some((key, _)) = texts.iter().find(|(key, text)| is_long(key) || is_long(text)) {
        let label = format!("longer than {TEXT_BYTES_MAX} bytes");
        let place = builder.place(&["alert", name, block, key]);
        let mistake = place.mistake(Code::OUT_OF_RANGE, label);
        builder.mistakes.push(mistake.hint("put what is longer into the runbook, `docs`"));
    }
    texts
}
