//! Whole files: what is refused with which screen, and what the rest means.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::keys::{Kind, NODE, SERVICE, Status};
use super::*;
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::domain::origin::{Layer, Origin};
use crate::domain::spec::{
    AlertOn, AlertStream, DependencyCondition, Millis, OnFailure, OnLimit, Param, Probe, ReadyBy,
    ReloadBy, RestartPolicy, Severity, Spec,
};
use crate::domain::template::Template;

fn specs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/specs")
}

fn body(stem: &str, text: &str) -> Input {
    layered(Part::Body(Layer::Host), "/etc/smgr/services.d", stem, text)
}

fn layered(part: Part, folder: &str, stem: &str, text: &str) -> Input {
    let shown = format!("{folder}/{stem}.toml");
    Input { part, shown, stem: stem.to_owned(), folder: None, text: text.to_owned() }
}

fn project(text: &str) -> Input {
    Input {
        part: Part::Project,
        shown: "./smgr.toml".to_owned(),
        stem: "smgr".to_owned(),
        folder: Some("/home/ana/shop".to_owned()),
        text: text.to_owned(),
    }
}

fn one(text: &str) -> LoadedService {
    let mut loaded = assemble(vec![body("web", text)], &Options::default())
        .unwrap_or_else(|mistakes| panic!("{}", render(&mistakes, "nothing", None)));
    loaded.services.remove(&"web".parse::<ServiceId>().unwrap()).unwrap()
}

fn codes(inputs: Vec<Input>) -> Vec<Code> {
    let mistakes = assemble(inputs, &Options::default()).err().unwrap_or_default();
    mistakes.iter().map(|mistake| mistake.code).collect()
}

fn templates(texts: &[&str]) -> Vec<Template> {
    texts.iter().map(|text| Template::new(*text)).collect()
}

#[test]
fn every_invalid_file_gets_its_screen() {
    let update = std::env::var_os("UPDATE_SPECS").is_some();
    let mut files: Vec<PathBuf> =
        fs::read_dir(specs().join("invalid")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "toml"));
    files.sort();
    assert!(files.len() > 25);
    for path in files {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let input = if stem.starts_with("project") { project(&text) } else { body("web", &text) };
        let Err(mistakes) = assemble(vec![input], &Options::default()) else {
            panic!("{stem} was accepted")
        };
        let screen = render(&mistakes, "nothing was started", Some(100));
        let expected = path.with_extension("txt");
        if update {
            fs::write(&expected, &screen).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(screen, expected, "{stem}: UPDATE_SPECS=1 rewrites");
    }
}

/// What `served.toml` leaves out, so that each block of a name of one's own stands somewhere.
const FURTHER: &str = r#"
[socket.http]
listen = "tcp:0.0.0.0:80"
[rollout.check.errors]
kind = "http"
url  = "http://localhost/errors"
"#;

#[test]
fn a_value_that_a_key_does_not_take_is_one_mistake_at_its_place() {
    let text = fs::read_to_string(specs().join("served.toml")).unwrap() + FURTHER;
    let file: toml_edit::DocumentMut = text.parse().unwrap();
    let mut unclear = Vec::new();
    for key in SERVICE.iter().filter(|key| key.status == Status::Served) {
        let is_true_one = matches!(key.kind, Kind::Bool | Kind::Scalar);
        let further = if is_true_one { "1.5" } else { "true" };
        for wrong in ["1979-05-27", "{ a = 1 }", "[[]]", further] {
            let mut file = file.clone();
            // Its block alone: no other one has to be read each time.
            let block = key.path.split('.').next();
            file.retain(|name, _| name == "exec" || Some(name) == block);
            let (mut at, mut path) = (file.as_item_mut(), Vec::new());
            for name in key.path.split('.') {
                let name = match name {
                    "*" => {
                        let block = at.as_table_like().and_then(|block| block.iter().next());
                        block.map(|(name, _)| name.to_owned())
                    }
                    name => Some(name.to_owned()),
                };
                let name = name.unwrap_or_else(|| panic!("no block stands for {}", key.path));
                at = &mut at[&name];
                path.push(name);
            }
            *at = toml_edit::value(wrong.parse::<toml_edit::Value>().unwrap());
            let redis = body("redis", r#"exec = ["redis-server"]"#);
            let inputs = vec![body("web", &file.to_string()), redis];
            let mistakes = assemble(inputs, &Options::default()).err().unwrap_or_default();
            let is_one_at_its_place = |mistake: &Mistake| {
                let mark = mistake.mark.as_deref();
                let marked = mark.map_or("", |mark| &mark.snippet[mark.start..][..mark.len]);
                !marked.is_empty()
                    && wrong.contains(marked)
                    && mistake.what.starts_with(&format!("{}: ", path.join(".")))
                    && mistake.hint.is_some()
            };
            if !matches!(&mistakes[..], [only] if is_one_at_its_place(only)) {
                let screen = render(&mistakes, "nothing was started", Some(100));
                unclear.push(format!("{} = {wrong}\n{screen}", key.path));
            }
        }
    }
    assert!(unclear.is_empty(), "{}", unclear.join("\n"));
}

#[test]
fn every_documented_key_is_in_the_table_and_no_other() {
    let documented = fs::read_to_string(specs().join("keys.txt")).unwrap();
    let documented: BTreeSet<&str> = documented.lines().collect();
    let known: BTreeSet<&str> = SERVICE.iter().map(|key| key.path).collect();
    assert_eq!(known, documented);
}

#[test]
fn the_smallest_file_is_the_documented_defaults() {
    let service = one(r#"exec = ["./server"]"#);
    let log = Template::new("/var/log/smgr/${service}/${instance}");
    let expected = Spec::new(templates(&["./server"]), Template::new("/"), log);
    assert_eq!(service.spec, expected);
}

#[test]
fn every_default_of_the_tables_is_a_value_of_its_key() {
    for key in SERVICE.iter().chain(NODE) {
        if let (keys::Default::Toml(value), Status::Served) = (key.default, key.status) {
            read::built_in(key.kind, &value.parse().unwrap());
        }
    }
}

#[test]
fn the_realistic_file_of_the_documentation_has_no_mistake_but_reserved_keys() {
    let text = fs::read_to_string(specs().join("realistic.toml")).unwrap();
    let redis = body("redis", r#"exec = ["redis-server"]"#);
    let mistakes = assemble(vec![body("web", &text), redis], &Options::default()).unwrap_err();
    for mistake in &mistakes {
        assert_eq!(
            mistake.code,
            Code::RESERVED_KEY,
            "{}",
            render(std::slice::from_ref(mistake), "-", None)
        );
    }
}

#[test]
fn all_that_is_served_reaches_the_spec() {
    let text = fs::read_to_string(specs().join("served.toml")).unwrap();
    let redis = body("redis", r#"exec = ["redis-server"]"#);
    let loaded = assemble(vec![body("web", &text), redis], &Options::default())
        .unwrap_or_else(|mistakes| panic!("{}", render(&mistakes, "-", None)));
    let spec = &loaded.services[&"web".parse::<ServiceId>().unwrap()].spec;
    assert_eq!(spec.user.as_ref().unwrap().to_string(), "web:www-data");
    assert_eq!((spec.instances, spec.umask, spec.limits.oom_score_adjust), (2, 0o027, 100));
    assert_eq!(spec.env["WORKERS"], Template::new("4"));
    assert_eq!(spec.ready.by, ReadyBy::Log("ready to serve".to_owned()));
    assert_eq!(spec.restart.policy, RestartPolicy::OnFailure);
    assert_eq!((spec.restart.factor.0, spec.restart.on_limit), (1500, OnLimit::Fail));
    assert_eq!(spec.restart.fatal_codes, [78]);
    assert_eq!((spec.stop.drain, spec.stop.signal.number()), (Millis(5000), 3));
    assert_eq!(spec.reload.by, ReloadBy::Exec(templates(&["/bin/webctl", "reload"])));
    assert_eq!((spec.log.max_size.0, spec.log.rate_limit), (1 << 20, 100));
    let redis = &spec.depends_on[&"redis".parse::<ServiceId>().unwrap()];
    assert_eq!((redis.condition, redis.required), (DependencyCondition::Started, false));
    assert!(redis.restart);
    let errors = &spec.alert[&"db-errors".parse().unwrap()];
    let on = AlertOn::Log { threshold: 5, window: Millis(30_000) };
    assert_eq!(
        (errors.on, errors.stream, errors.severity),
        (on, AlertStream::Stderr, Severity::Critical)
    );
    assert_eq!((errors.r#for, errors.keep_firing_for), (Millis(10_000), Millis(120_000)));
    assert_eq!(
        (errors.labels["team"].as_str(), errors.exclude.as_deref()),
        ("shop", Some("retrying"))
    );
    assert_eq!(spec.alert[&"no-orders".parse().unwrap()].on, AlertOn::Absence);
    assert_eq!(spec.alert.len(), 2, "one is switched off");
    let app = &spec.health[&"app".parse().unwrap()];
    let address = Template::new("[::1]:808${instance}");
    let path = "/readyz".to_owned();
    assert_eq!(app.probe, Probe::Http { address, path, status_min: 204, status_max: 204 });
    assert_eq!((app.interval, app.min_interval), (Millis(5000), Millis(250)));
    assert_eq!((app.timeout, app.failures, app.successes), (Millis(2000), 2, 4));
    let deadlock = &spec.health[&"deadlock".parse().unwrap()];
    assert_eq!((deadlock.min_interval, deadlock.on_failure), (Millis(100), OnFailure::Restart));
    let page = &spec.health[&"page".parse().unwrap()];
    assert_eq!(page.probe.address(), Some(&Template::new("localhost:80${instance}")));
    assert_eq!(spec.health.len(), 5, "one is switched off");
    let program = &spec.health[&"program".parse().unwrap()].probe;
    assert!(matches!(program, Probe::Exec { exec } if exec.len() == 4));
    let clear = &spec.action[&"cache-clear".parse().unwrap()];
    assert!(clear.idempotent && !clear.confirm);
    assert!(matches!(&clear.params["zone"], Param::String { default: Some(d), .. } if d == "all"));
}

#[test]
fn a_spec_reads_back_from_its_canonical_text_and_its_digest_is_stable() {
    let text = fs::read_to_string(specs().join("served.toml")).unwrap();
    let off = text.replace("[depends_on.redis]", "[depends_on.redis]\nenabled = false");
    let service = one(&off);
    assert_eq!(serde_json::from_str::<Spec>(&service.text).unwrap(), service.spec);
    assert_eq!(canonical(&service.spec), (service.text, service.digest));
    // A layout, a comment or a spelt-out default is no other spec.
    let a = one("exec = [\"a\"]");
    let b = one("# comment\nenabled = true\n\nexec   = [ 'a' ]\n[stop]\ntimeout = \"30s\"");
    assert_eq!(a.digest, b.digest);
    assert_ne!(a.digest, one("exec = [\"b\"]").digest);
}

#[test]
fn the_canonical_form_does_not_change_by_itself() {
    // Every node would call its configuration outdated. A field that is added has to be left out
    // of the text while it has its default.
    let digest = one("exec = [\"a\"]").digest.to_string();
    assert_eq!(digest, "adcd20aa1ce8d2eb3a026e2784f96b4c42442856d433aec0c266cf9e5c140555");
}

#[test]
fn layers_merge_tables_replace_the_rest_and_every_value_knows_its_origin() {
    let inputs = || {
        vec![
            layered(
                Part::Body(Layer::Vendor),
                "/usr/lib/smgr/services.d",
                "web",
                "exec = [\"/usr/bin/web\"]\ngroup = \"shop\"\n[env]\nA = \"vendor\"\nB = \"vendor\"\n",
            ),
            body("web", "env_files = [\"/a\"]\n[env]\nB = \"host\"\nC = \"host\"\n"),
            layered(
                Part::Group,
                "/etc/smgr/groups.d",
                "shop",
                "[env]\nC = \"group\"\n[stop]\ntimeout = \"9s\"\n",
            ),
            layered(Part::Group, "/etc/smgr/groups.d", "other", "[env]\nC = \"other\"\n"),
            layered(
                Part::Override,
                "/etc/smgr/override.d",
                "web",
                "env_files = [\"/b\"]\n[stop]\n\ntimeout = \"5s\"\n",
            ),
        ]
    };
    let loaded = assemble(inputs(), &Options::default()).unwrap();
    let web = &loaded.services[&"web".parse::<ServiceId>().unwrap()];
    let env: Vec<_> = web.spec.env.values().map(Template::as_str).collect();
    assert_eq!(env, ["vendor", "host", "group"]);
    assert_eq!(web.spec.env_files, templates(&["/b"]));
    assert_eq!(web.spec.stop.timeout, Millis(5000));

    let timeout = &web.effective["stop.timeout"];
    assert_eq!(timeout.value, "\"5s\"");
    assert_eq!(timeout.origin.to_string(), "/etc/smgr/override.d/web.toml:4");
    assert_eq!((timeout.origin.layer, timeout.origin.layer.number()), (Layer::Node, 7));
    let hidden: Vec<_> = timeout.hides.iter().map(|(v, o)| format!("{v} {o}")).collect();
    assert_eq!(hidden, ["\"9s\" /etc/smgr/groups.d/shop.toml:4", "\"30s\" built-in"]);
    assert_eq!(web.effective["stop.drain"].origin.to_string(), "built-in");
    assert_eq!(web.origin.to_string(), "/etc/smgr/services.d/web.toml:1");

    let mut reversed = inputs();
    reversed.reverse();
    let again = assemble(reversed, &Options::default()).unwrap();
    assert_eq!(again.services.values().next().unwrap().digest, web.digest);
}

#[test]
fn of_layer_7_the_file_of_the_machine_counts_before_what_a_wish_set() {
    let web: ServiceId = "web".parse().unwrap();
    let set = [("umask", "0077"), ("stop.timeout", "4s")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let wish = set_layer(Layer::Node, "i-1 by ana", &web, &set).unwrap();
    let file = layered(Part::Override, "/etc/smgr/override.d", "web", "umask = \"0027\"\n");
    let service = body("web", "exec = [\"a\"]");
    for inputs in [[&service, &wish, &file], [&file, &wish, &service]] {
        let loaded = assemble(inputs.map(Input::clone).into(), &Options::default()).unwrap();
        let effective = &loaded.services[&web].effective;
        let said = |it: &Effective| {
            let origin = &it.origin;
            format!("{} {origin} ({})", it.value, origin.layer.number())
        };
        assert_eq!(said(&effective["umask"]), "\"0027\" /etc/smgr/override.d/web.toml:1 (7)");
        assert_eq!(effective["umask"].hides[0].1.to_string(), "i-1 by ana");
        assert_eq!(said(&effective["stop.timeout"]), "\"4s\" i-1 by ana (7)");
    }
}

#[test]
fn a_service_waits_for_so_many_others_and_no_more() {
    let on = |count: usize| -> Vec<Input> {
        let name = |number: usize| format!("{}{number}", "n".repeat(50));
        let blocks: String =
            (0..count).map(|number| format!("[depends_on.{}]\n", name(number))).collect();
        let others = (0..count).map(|number| body(&name(number), "exec = [\"a\"]"));
        others.chain([body("web", &format!("exec = [\"a\"]\n{blocks}"))]).collect()
    };
    assert_eq!(codes(on(64)), []);
    assert_eq!(codes(on(65)), [Code::TOO_MANY]);
}

#[test]
fn an_inherited_block_is_switched_off() {
    let inputs = vec![
        body("web", "exec = [\"a\"]\n[depends_on.gone]\n[action.clear]\nexec = [\"b\"]\n"),
        layered(
            Part::Override,
            "/etc/smgr/override.d",
            "web",
            "[depends_on.gone]\nenabled = false\n[action.clear]\nenabled = false\n",
        ),
    ];
    let loaded = assemble(inputs, &Options::default()).unwrap();
    let spec = &loaded.services.values().next().unwrap().spec;
    assert!(spec.depends_on.is_empty() && spec.action.is_empty());
}

#[test]
fn effective_values_are_those_of_entries_that_are_on_built_in_ones_included() {
    let text = "exec = [\"a\"]\n[action.clear]\nexec = [\"b\"]\n[action.warm]\nexec = [\"c\"]\n";
    let over = "[action.clear]\nenabled = false\n";
    let inputs =
        vec![body("web", text), layered(Part::Override, "/etc/smgr/override.d", "web", over)];
    let loaded = assemble(inputs, &Options::default()).unwrap();
    let web = loaded.services.values().next().unwrap();
    let keys: Vec<_> = web.effective.keys().filter(|key| key.starts_with("action.")).collect();
    let expected = ["clear.enabled", "warm.confirm", "warm.enabled", "warm.exec"];
    assert!(expected.iter().all(|key| keys.contains(&&format!("action.{key}"))), "{keys:?}");
    assert!(!keys.contains(&&"action.clear.exec".to_owned()), "{keys:?}");
    let switch = &web.effective["action.clear.enabled"];
    assert!(switch.is_overridden());
    assert_eq!(switch.hides, [("true".to_owned(), Origin::built_in())]);
    let set: Vec<_> = web.set().into_keys().collect();
    assert_eq!(set, ["action.clear.enabled", "action.warm.exec", "exec"]);
}

#[test]
fn of_two_files_in_one_layer_that_of_the_machine_wins() {
    let inputs = vec![
        body("web", "exec = [\"a\"]\ngroup = \"shop\"\n"),
        layered(Part::Group, "./groups.d", "shop", "instances = 2\n"),
        layered(Part::Group, "/etc/smgr/groups.d", "shop", "instances = 3\n"),
        layered(Part::Override, "./override.d", "web", "umask = \"0027\"\n"),
        layered(Part::Override, "/etc/smgr/override.d", "web", "umask = \"0077\"\n"),
    ];
    let loaded = assemble(inputs, &Options::default()).unwrap();
    let web = loaded.services.values().next().unwrap();
    let origin = |key: &str| web.effective[key].origin.to_string();
    assert_eq!(origin("instances"), "/etc/smgr/groups.d/shop.toml:1");
    assert_eq!(origin("umask"), "/etc/smgr/override.d/web.toml:1");
    assert_eq!(web.effective["umask"].hides[0].1.to_string(), "./override.d/web.toml:1");
}

#[test]
fn a_group_is_not_moved_by_its_own_file_and_needs_a_service() {
    let web = || body("web", "exec = [\"a\"]\ngroup = \"shop\"\n");
    let group = |stem, text| layered(Part::Group, "/etc/smgr/groups.d", stem, text);
    assert_eq!(codes(vec![web(), group("shop", "group = \"other\"")]), [Code::UNKNOWN_KEY]);
    let loaded =
        assemble(vec![web(), group("shpo", "instances = 2")], &Options::default()).unwrap();
    let warned: Vec<_> = loaded.warnings.iter().map(|it| (it.code, it.hint.as_deref())).collect();
    assert_eq!(warned, [(Code::GROUP_OF_NOTHING, Some("did you mean `shop`?"))]);
}

#[test]
fn a_service_is_defined_once_and_only_what_exists_is_overridden() {
    let twice = vec![body("web", "exec = [\"a\"]"), project("[service.web]\nexec = [\"b\"]")];
    assert_eq!(codes(twice), [Code::DUPLICATE_SERVICE]);
    let nothing = vec![layered(Part::Override, "/o", "web", "instances = 2")];
    assert_eq!(codes(nothing), [Code::OVERRIDE_OF_NOTHING]);
    assert_eq!(codes(vec![body("php-fpm8.2", "exec = [\"a\"]")]), [Code::BAD_NAME]);
}

#[test]
fn two_services_never_write_one_log() {
    let text = "exec = [\"a\"]\n[log]\ndir = \"/var/log/${instance}\"\n";
    assert_eq!(codes(vec![body("a", text), body("b", text)]), [Code::SHARED_LOG]);
}

#[test]
fn two_sockets_never_listen_at_one_address() {
    let at = |listen: &str| {
        format!("exec = [\"a\"]\n[socket.http]\nlisten = \"{listen}\"\n{}", {
            if listen.contains("${") && !listen.contains("service") {
                "per_instance = true\n"
            } else {
                ""
            }
        })
    };
    let pair = |a: &str, b: &str| vec![body("a", &at(a)), body("b", &at(b))];
    let mistakes = assemble(pair("tcp:[::]:80", "tcp:127.0.0.1:80"), &Options::default());
    let expected = "\
error: 1 mistake in /etc/smgr/services.d/b.toml; nothing                 [E0450]
  /etc/smgr/services.d/b.toml:3:10  listen = \"tcp:127.0.0.1:80\"
                                             ^^^^^^^^^^^^^^^^^^ `a` listens at tcp:[::]:80, in /etc/smgr/services.d/a.toml:3
hint: give one of them another port or path          more: smgr explain E0450
";
    assert_eq!(render(&mistakes.unwrap_err(), "nothing", Some(80)), expected);
    assert_eq!(codes(pair("unix:/run/x", "unix:/run/${service}")), []);
    assert_eq!(codes(pair("tcp:[::1]:800${instance}", "tcp:[::]:8000")), [Code::SHARED_SOCKET]);
    assert_eq!(codes(pair("unix:${runtime}/s", "unix:${runtime}/s")), []);
    let one = format!("{}[socket.also]\nlisten = \"tcp:[::1]:80\"\n", at("tcp:[::1]:80"));
    assert_eq!(codes(vec![body("a", &one)]), [Code::SHARED_SOCKET]);
}

#[test]
fn a_secret_in_the_environment_is_a_warning() {
    let text = "exec = [\"a\"]\n[credential.key]\nsource = \"file:/k\"\nenv = \"KEY\"\n";
    let loaded = assemble(vec![body("web", text)], &Options::default()).unwrap();
    let screen = render_warnings(&loaded.warnings, Some(80));
    let expected = "\
warning: a secret is copied into the environment
  /etc/smgr/services.d/web.toml:4:7  env = \"KEY\"
                                           ^^^^^ every child of the service inherits this secret  [E0441]
hint: read the file $CREDENTIALS_DIRECTORY/key if you can
";
    assert_eq!(screen, expected);
}

#[test]
fn root_runs_nothing_that_does_not_say_as_whom() {
    let options = Options { user_required: true, ..Options::default() };
    let refused = assemble(vec![body("web", "exec = [\"a\"]")], &options).unwrap_err();
    assert_eq!(refused[0].code, Code::USER_REQUIRED);
    assert!(assemble(vec![body("web", "exec = [\"a\"]\nuser = \"root\"")], &options).is_ok());
}

#[test]
fn relative_paths_of_a_project_start_at_its_folder() {
    let text = "[service.web]\nexec = [\"./server\"]\nenv_files = [\"./web.env\", \"/etc/x\"]\n\
                [service.sub]\nexec = [\"./server\"]\nworking_dir = \"sub\"\n";
    let loaded = assemble(vec![project(text)], &Options::default()).unwrap();
    let web = &loaded.services[&"web".parse::<ServiceId>().unwrap()].spec;
    assert_eq!(web.working_dir.as_str(), "/home/ana/shop");
    assert_eq!(web.env_files, templates(&["/home/ana/shop/web.env", "/etc/x"]));
    let sub = &loaded.services[&"sub".parse::<ServiceId>().unwrap()].spec;
    assert_eq!(sub.working_dir.as_str(), "/home/ana/shop/sub");
}

#[test]
fn files_of_all_folders_are_found_and_what_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::below(dir.path());
    assert!(load(&roots, &Options::default(), None).unwrap().services.is_empty());
    let services = dir.path().join("services.d");
    fs::create_dir(&services).unwrap();
    fs::write(services.join("web.toml"), "exec = [\"a\"]").unwrap();
    fs::write(services.join(".web.toml"), "junk").unwrap();
    fs::write(services.join("web.toml~"), "junk").unwrap();
    assert_eq!(load(&roots, &Options::default(), None).unwrap().services.len(), 1);
    fs::write(services.join("big.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    fs::write(services.join("latin.toml"), [0xff]).unwrap();
    fs::create_dir(services.join("folder.toml")).unwrap();
    let project = Some(dir.path().join("none/smgr.toml"));
    let roots = Roots { project, ..roots };
    let mistakes = load(&roots, &Options::default(), None).unwrap_err();
    let found: Vec<Code> = mistakes.iter().map(|mistake| mistake.code).collect();
    let expected =
        [Code::FILE_TOO_LARGE, Code::FILE_UNREADABLE, Code::NOT_TEXT, Code::FILE_UNREADABLE];
    assert_eq!(found, expected);
}

#[test]
fn deep_nesting_is_one_mistake() {
    let deep = format!("x = {}{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(codes(vec![body("web", &deep)]), [Code::BAD_TOML]);
}

#[test]
fn every_fuzz_seed_gets_an_answer() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/spec");
    let mut seen = 0;
    for entry in fs::read_dir(seeds).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for input in [body("web", &text), project(&text)] {
            if let Err(mistakes) = assemble(vec![input], &Options::default()) {
                let screen = render(&mistakes, "nothing was started", Some(80));
                assert!(!screen.contains(|c: char| c.is_control() && c != '\n'), "{screen:?}");
            }
        }
        seen += 1;
    }
    assert!(seen > 40);
}

#[test]
fn a_mark_stands_under_what_it_marks_whatever_the_file_begins_with() {
    let mistakes = assemble(vec![body("web", "\u{feff}exce = [\"a\"]\r\n")], &Options::default());
    let mistakes = mistakes.unwrap_err();
    let mark = mistakes[0].mark.as_ref().unwrap();
    assert_eq!(&mark.snippet[mark.start..mark.start + mark.len], "exce");
}

#[test]
fn files_that_others_could_change_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("smgr.toml");
    fs::write(&project, "[service.web]\nexec = [\"a\"]").unwrap();
    let me = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&project).unwrap());
    let roots = Roots { project: Some(project.clone()), ..Roots::default() };
    let try_with = |mode, uid| {
        fs::set_permissions(&project, fs::Permissions::from_mode(mode)).unwrap();
        load(&roots, &Options::default(), Some(uid)).map(drop).map_err(|found| found[0].code)
    };
    assert_eq!(try_with(0o644, me), Ok(()));
    assert_eq!(try_with(0o666, me), Err(Code::OPEN_TO_OTHERS));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(try_with(0o644, me), Err(Code::OPEN_TO_OTHERS));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    // Root's files may be run by everybody, another user's by nobody.
    let expected = if me == 0 { Ok(()) } else { Err(Code::FOREIGN_OWNER) };
    assert_eq!(try_with(0o644, me + 1), expected);
}

fn line() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = SERVICE.iter().map(|key| key.path).collect();
    let value = prop_oneof![
        Just("\"30s\"".to_owned()),
        Just("[\"a\", \"${service}\"]".to_owned()),
        Just("true".to_owned()),
        Just("{ a = 1 }".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        ".{0,12}".prop_map(|text| toml_edit::Value::from(text).to_string()),
        "\\PC{0,8}",
    ];
    let key = prop::sample::select(keys).prop_map(|path| path.replace('*', "x"));
    let header =
        prop::sample::select(vec!["[log]", "[action.a]", "[[x]]", "[env]", "[service.web]"]);
    prop_oneof![
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => header.prop_map(str::to_owned),
        1 => "\\PC{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(
        text in prop_oneof!["(?s).{0,80}", prop::collection::vec(line(), 0..12).prop_map(|l| l.join("\n"))],
        width in prop::option::of(0_usize..200),
    ) {
        for input in [body("web", &text), project(&text), layered(Part::Override, "/o", "x", &text)] {
            if let Err(mistakes) = assemble(vec![input], &Options::default()) {
                prop_assert!(!mistakes.is_empty());
                let screen = render(&mistakes, "nothing was started", width);
                prop_assert!(!screen.contains(|c: char| c.is_control() && c != '\n'));
                json(&mistakes).to_string();
            }
        }
    }
}
