//! The table of error codes.

use super::{Code, Entry, ExitCode};

/// What the first two digits say.
pub(super) const RANGES: &[(u16, &str)] = &[
    (1, "the command line"),
    (2, "connections"),
    (3, "authority: the checks of the agent, in their order"),
    (4, "spec files and configuration"),
    (5, "history and audit"),
    (6, "services and actions"),
    (7, "releases"),
    (9, "smgr itself"),
];

macro_rules! codes {
    ($($name:ident = $number:literal, $exit:ident, $title:literal, $explanation:literal;)*) => {
        impl Code {
            $(#[doc = $title] pub const $name: Self = Self($number);)*
        }

        /// Every code, ascending.
        pub const TABLE: &[Entry] = &[
            $(Entry {
                code: Code::$name,
                exit: ExitCode::$exit,
                title: $title,
                explanation: $explanation,
            },)*
        ];
    };
}

codes! {
    USAGE = 101, Usage, "the command line was not understood",
        "A command, flag or value is unknown or missing. `smgr help COMMAND` lists what there is.";
    BAD_SELECTOR = 102, Usage, "not a selector",
        "Instances are named `service/instance@node`; `/instance` and `@node` may be left out.";
    BAD_TIME = 103, Usage, "not a time",
        "Times are RFC 3339 (`2026-11-22T14:02:00Z`) or an age such as `10m`.";
    BAD_CURSOR = 104, Usage, "not a cursor",
        "A cursor has the form ORIGIN/EPOCH/SEQ. Copy it from the output of `smgr events`; it is not made by hand.";
    CONFIRMATION_NEEDED = 105, Usage, "this needs a yes",
        "The act asks for confirmation and there is no terminal to ask on. Say `--yes` to do it all the same.";
    ALREADY_UP = 106, Refused, "smgr is already up here",
        "One smgr serves one state folder. `smgr attach` shows it, `smgr down` ends it.";
    NOT_YET = 107, Usage, "known, but not in this version",
        "The command or flag is reserved: its name and meaning are fixed, the function comes in a later version.";
    NO_SUCH_PATH = 108, NotFound, "there is nothing at this path",
        "A face over HTTP has the paths of `GET /openapi.json`, and each takes the methods that are listed there.";

    AGENT_UNREACHABLE = 201, Unreachable, "no agent answers on this machine",
        "Nothing listens on the socket, or it does not answer in time. Services go on without it. `smgr up` or the \
         service unit starts it again.";
    BUS_UNREACHABLE = 202, Unreachable, "the bus cannot be reached",
        "No NATS server of `bus.urls` accepts a connection. Supervision does not need it; only commands from \
         elsewhere do. On the node itself the same command works over the local socket.";
    BUS_REFUSED = 203, Unreachable, "the bus refused the connection",
        "The NATS server is there but does not accept our credentials, or is too old. Its own log says which.";
    PROTOCOL_MISMATCH = 204, Unreachable, "the other side speaks another protocol",
        "Parts of smgr understand their own protocol version and the one before. Upgrade the older one.";
    BUS_OFF = 205, Unreachable, "the bus is off",
        "No `bus.urls` are set, so only this machine can be reached. `smgr help bus` says how to turn it on.";
    NO_NATS_SERVER = 206, Unreachable, "no recent nats-server was found",
        "smgr starts a nats-server of 2.14.5 or later where one is in PATH. Install one, or set `bus.urls`.";
    STILL_RUNNING = 207, StillRunning, "still running when the wait was over",
        "Nothing was cancelled: it goes on, and `smgr history` tells how it ends.";
    SOCKET_REFUSED = 208, NotAuthorised, "the local socket is closed to this user",
        "Reading is allowed to root and to the group `smgr`; commanding needs a key.";

    TOO_LARGE = 301, NotAuthorised, "the message is too large",
        "Envelopes may have 64 KiB. Refused before it was decoded; nothing was executed.";
    BAD_SHAPE = 302, NotAuthorised, "not an envelope",
        "The bytes are not an envelope of a known version. Refused; nothing was executed.";
    UNKNOWN_TYPE = 303, NotAuthorised, "an unknown kind of message",
        "The envelope is well formed but its kind is not one that this version takes here.";
    UNKNOWN_SIGNER = 304, NotAuthorised, "signed by a key that is not known here",
        "The key is not in this node's trust envelope. It may have been made on another machine, or after \
         the last update of trust.";
    KEY_REVOKED = 305, NotAuthorised, "signed by a revoked key",
        "The key was taken back. History says by whom and when. Sign with another one.";
    KEY_OUT_OF_TIME = 306, NotAuthorised, "the key's certificate is not valid at that time",
        "The certificate had ended, or had not begun, when the wish was issued. Renew it.";
    CLASS_MAY_NOT_SIGN = 307, NotAuthorised, "this class of key may not sign this kind of message",
        "Keys have a class (person, job, controller, node, local); each class may sign certain kinds only.";
    RATE_LIMITED = 308, Refused, "too many messages with this key",
        "Each key has a rate. Wait a moment and send the same message again: its id makes that harmless.";
    BAD_CHAIN = 309, NotAuthorised, "the chain of certificates does not hold",
        "A certificate grants more, or longer, than the one above it, or the chain is too long.";
    BAD_SIGNATURE = 310, NotAuthorised, "the signature does not verify",
        "The bytes are not what the key signed. Damaged on the way, or forged.";
    BAD_PAYLOAD = 311, NotAuthorised, "the signed content was not understood",
        "Wishes are read strictly: an unknown field, action or value, or bytes left over, refuse the whole. A newer \
         smgr may have signed it.";
    WRONG_ISSUER = 312, NotAuthorised, "issued in the name of somebody else",
        "The issuer in the message is not the holder of the key that signed it.";
    WRONG_AUDIENCE = 313, NotAuthorised, "addressed to somebody else",
        "This node is not in the signed audience, whatever the subject said.";
    EXPIRED = 314, Refused, "the wish has expired",
        "It arrived after its signed end, or its id is so old that the log no longer knows it. Nothing was executed. \
         Issue it again.";
    NOT_YET_VALID = 315, Refused, "the wish is from the future",
        "It was issued later than this node's clock says, beyond the tolerance of 30 s. Compare the clocks.";
    LIFETIME_TOO_LONG = 316, Refused, "the wish lives too long",
        "A wish that runs once may live for minutes only. Issue it with an earlier end.";
    CLOCK_UNSURE = 317, Refused, "this node does not trust its clock",
        "The clock is below a time that was already seen, or was never synchronised, so the age of the wish cannot \
         be judged. Local root can always command.";
    REPLAYED = 318, Refused, "this id was used before with another content",
        "An id stands for one wish for ever. The same wish again is answered with its first outcome; another one \
         needs an id of its own.";
    STALE_EPOCH = 319, Refused, "issued before this node's log began anew",
        "The node may have forgotten that it ran this wish, so it refuses. Issue it again.";
    STALE_GENERATION = 320, Refused, "a newer desired state is in force",
        "Desired states are numbered and an older one is never taken. Read the present one, then decide.";
    STALE_TERM = 321, Refused, "from a controller that no longer leads",
        "A higher term was seen. The controller that leads will send its own order.";
    OUTSIDE_INTENT = 322, NotAuthorised, "the order goes beyond its intent",
        "An order is taken only inside the signed intent that it carries.";
    NOT_GRANTED = 323, NotAuthorised, "not granted",
        "The key is good, but no grant covers this action on this service here. Everything that is not granted is \
         refused.";
    BEYOND_CAP = 324, NotAuthorised, "beyond what the grant allows",
        "A grant carries limits, such as a number of nodes or a lifetime, and this wish is over one of them.";
    CONFLICT = 325, Refused, "something else is being done to this service",
        "Wait for it, or look at `smgr history SERVICE`.";
    HELD = 326, Refused, "held or frozen",
        "Somebody holds changes to this service or this fleet. History says who and why.";
    LOG_UNAVAILABLE = 327, History, "the history cannot be written",
        "The disk is full, stalled or failing, and nothing is accepted that could not be recorded. Supervision goes \
         on, and local root can still stop and restart. It recovers by itself.";
    BUSY = 328, Refused, "too much is under way",
        "A bounded queue is full. Nothing was accepted; send the same message again later.";

    ORDER_NEEDED = 329, Refused, "this wish needs a controller",
        "A wish for several nodes, or for a selection of them, is taken inside an order only: a controller resolves it \
         and goes from wave to wave. For one node, name that one.";
    FORKED_TERM = 330, Refused, "another controller leads in this term",
        "A node obeys one controller in each term. The one that leads begins a higher one.";
    ANOTHER_PLAN = 331, Refused, "another plan of this wish is being followed",
        "A wish has one plan. Its digest is in every order, and an order of another one is not taken.";
    RETURNED = 332, Refused, "this wish was taken back here",
        "After the return no apply of the same wish is taken. Deploy again: that is a new wish.";
    CANARY_UNPROVEN = 333, Refused, "the canary wave has not been proved healthy",
        "A node takes a release as one of the first only where that is its turn by what was signed: as one of the canary, \
         or of the first batch where there is no canary. To any other an order carries the signed words of nodes where \
         the release became healthy, and each word that it carries has to be such a one: one of a failure refuses the \
         order, whatever others say. Only a wish that says `--emergency` passes without. Where the roster has changed \
         since the wish was signed, deploy anew.";
    BAD_TOKEN = 334, NotAuthorised, "no such bearer token",
        "The controller knows tokens by their SHA-256. This one was never made here, was taken back, or stands for a key \
         that is not trusted any more. `smgr token create --as JOB` makes one.";
    TRUST_UNUSABLE = 335, NotAuthorised, "the trust document cannot be followed",
        "It is older than the one in force, another one of the same version, or for another fleet. The one in force goes on.";
    MEMBERSHIP = 336, Refused, "the fleet cannot take this node in as asked",
        "The name or a key belongs to another node, this state folder belongs to one already, or the bus of the fleet \
         listens on the loopback alone.";
    PART_OF_SMGR = 337, Refused, "this service is part of smgr itself",
        "Its bus and its controllers are services of the node that runs them. No release takes their place, and they go \
         with `smgr down`.";

    FILE_UNREADABLE = 401, Invalid, "a file cannot be read",
        "It is missing, or this user may not read it.";
    FILE_TOO_LARGE = 402, Invalid, "a file is too large",
        "Spec and environment files may have 1 MiB. Something else was probably put in their place.";
    NOT_TEXT = 403, Invalid, "a file is not text",
        "Spec files are UTF-8 without NUL.";
    BAD_TOML = 404, Invalid, "a file is not TOML",
        "The place where reading stopped is marked. The mistake may also stand just before it.";
    NESTED_TOO_DEEP = 405, Invalid, "nested too deeply",
        "No key of smgr needs more than 8 levels.";
    OPEN_TO_OTHERS = 406, Invalid, "others may write this file",
        "Whoever can write a spec can run programs. Spec files, and the folders that they lie in, may be written by \
         root, or by the user who runs smgr, and by nobody else: `chmod go-w FILE`.";
    FOREIGN_OWNER = 407, Invalid, "this file belongs to somebody else",
        "Spec files, and the folders that they lie in, belong to root or to the user who runs smgr: `chown`.";
    CANNOT_WRITE = 408, Invalid, "a file cannot be written",
        "Nothing was changed: files are written beside their place and moved there.";
    SPEC_VERSION = 409, Invalid, "another version of the format",
        "This version reads `spec = 1`.";
    OVERRIDE_OF_NOTHING = 410, Invalid, "this file changes a service that does not exist",
        "A file in `override.d` is named after a service of `services.d`. Perhaps the name is misspelt.";
    RESERVED_KEY = 411, Invalid, "known, not in this version",
        "The key, or this value of it, is reserved: its name and meaning are fixed, the function comes in a later \
         version. It is refused rather than ignored, so that a file never promises what is not kept.";
    UNKNOWN_KEY = 412, Invalid, "unknown key",
        "Keys are checked so that a misspelt one cannot be silently without effect. `smgr help spec` lists all.";
    WRONG_TYPE = 413, Invalid, "a value of the wrong type",
        "The hint says what is expected.";
    UNKNOWN_VALUE = 414, Invalid, "not one of the possible values",
        "The hint lists them.";
    BAD_DURATION = 415, Invalid, "not a duration",
        "Durations are texts with units: \"250ms\", \"30s\", \"1h30m\", \"14d\". A bare number is refused, because \
         people read it as seconds and programs as milliseconds.";
    BAD_SIZE = 416, Invalid, "not a size",
        "Sizes are texts with a unit that says its base: KiB, MiB, GiB (1024) or kB, MB, GB (1000). \"512M\" is \
         refused: systemd and docker read it as 2^20, Kubernetes as 10^6.";
    BAD_PERCENT = 417, Invalid, "not a percentage",
        "Percentages are texts: \"25%\".";
    OUT_OF_RANGE = 418, Invalid, "out of range",
        "The hint names the smallest and the largest value.";
    BAD_NAME = 419, Invalid, "not a name",
        "Names of things are 1 to 63 characters a-z, 0-9 and `-`, because they become part of subjects and paths.";
    EXEC_IS_TEXT = 420, Invalid, "a command line where a list belongs",
        "No shell is involved, so every argument is an element of its own. The hint prints the list to paste.";
    MISSING_KEY = 421, Invalid, "a key is missing",
        "The block cannot do without it.";
    BAD_TEMPLATE = 422, Invalid, "a `$` that means nothing",
        "`${name}` is replaced and `$$` is a dollar sign; nothing else may follow a dollar sign. Environment variables \
         are not expanded.";
    UNKNOWN_SUBSTITUTION = 423, Invalid, "nothing has this name",
        "The names are release, service, instance, run, node, fleet and runtime, and in an action its own parameters.";
    BAD_REGEX = 424, Invalid, "not a regular expression",
        "The syntax is that of the Rust crate `regex`: no look-around and no back references, in exchange for linear \
         time.";
    BAD_SIGNAL = 425, Invalid, "not a signal",
        "Signals are written by name: TERM, HUP, USR1, RTMIN+3.";
    BAD_USER = 426, Invalid, "not a user",
        "Users are written `name` or `name:group`; numbers are names too.";
    USER_REQUIRED = 427, Invalid, "root runs smgr, so every service must say as whom it runs",
        "Write `user = \"web\"`, or `user = \"root\"` where that is meant. Nothing becomes root by omission.";
    BAD_PATH = 428, Invalid, "not a path that can be used here",
        "Files of the machine name absolute paths. In a project, relative paths start at the project's folder.";
    DUPLICATE_SERVICE = 429, Invalid, "a service is defined twice",
        "One service has one body. The layers above it (group, override) change it; they do not define it again.";
    UNKNOWN_DEPENDENCY = 430, Invalid, "depends on a service that does not exist",
        "Define it, correct the name, or switch the dependency off with `enabled = false`.";
    DEPENDENCY_CYCLE = 431, Invalid, "services wait for each other",
        "None of them could ever start. The way round is printed; take one dependency out.";
    CONTRADICTION = 432, Invalid, "two settings contradict each other",
        "The hint says which and why.";
    TOO_MANY = 433, Invalid, "too many",
        "There is a bound, so that a mistake in a generator cannot take the machine down.";
    BAD_ENV_NAME = 434, Invalid, "not the name of an environment variable",
        "Names are letters, digits and `_`, not starting with a digit. `SMGR_…`, `LISTEN_…`, `NOTIFY_SOCKET` and \
         `CREDENTIALS_DIRECTORY` are set by smgr itself.";
    BAD_ENV_FILE = 435, Invalid, "an environment file was not understood",
        "Lines are KEY=VALUE, empty, or start with `#`. A missing file is an error.";
    BAD_CREDENTIAL = 436, Invalid, "not the source of a credential",
        "Sources are written `file:/absolute/path`.";
    BAD_RATE = 437, Invalid, "not a rate",
        "Rates are written \"20000/s\".";
    BAD_MODE = 438, Invalid, "not a file mode",
        "Modes are texts of octal digits, at most \"0777\".";
    EMPTY_VALUE = 439, Invalid, "empty where something is needed",
        "An empty list or text here would mean nothing, or everything, and neither is guessed.";
    FILE_IN_THE_WAY = 440, Refused, "there is a file already",
        "Files that people wrote are never overwritten.";

    SECRET_IN_ENVIRONMENT = 441, Invalid, "a secret is copied into the environment",
        "A warning only. Variables are inherited by every child and are readable in /proc by the same user; the file \
         in $CREDENTIALS_DIRECTORY is not. Keep the copy only for programs that cannot read a file.";
    SHARED_LOG = 442, Invalid, "two services write their log into one folder",
        "Their files would overwrite each other. Put ${service} into `log.dir`.";
    GROUP_OF_NOTHING = 443, Invalid, "this file changes a group that no service is in",
        "A warning only. A file in `groups.d` is named after the `group` of services. Perhaps the name is misspelt.";
    BAD_ADDRESS = 449, Invalid, "not an address to listen at",
        "Addresses are written `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` with a number as address, or `unix:/absolute/path`.";
    SHARED_SOCKET = 450, Invalid, "two sockets listen at one address",
        "Only the first of them could be opened; `[::]` and `0.0.0.0` take their port on all addresses. Two services that \
         are to share the work of one address are instances of one service.";
    NOT_HERE = 451, Invalid, "a service needs what this machine does not have",
        "A warning only. The service is not started on this machine as long as it is so; where the file is meant for other \
         machines, or its program comes later, nothing is wrong.";

    EVENT_ALTERED = 501, History, "an event is not what was signed",
        "The named event was changed after it was written, or its place in the tree holds another one. Keep the files \
         as they are: they are evidence.";
    LOG_DAMAGED = 502, History, "a log file is damaged",
        "The structure of the file is broken at the named offset. What lies before it was verified.";
    SEGMENT_MISSING = 503, History, "a piece of the history is missing",
        "Whole segments leave only through retention, which leaves an event. This one did not.";
    SEGMENT_SWAPPED = 504, History, "a piece of the history is not the one that belongs here",
        "A segment of another log, or of another time, was put in its place.";
    CUT_AGAINST_PIN = 505, History, "the history is shorter than it was",
        "A head that was seen before (a pin, a cosignature) lies beyond the end. The tail was cut off.";
    FORKED = 506, History, "two histories claim the same place",
        "The head does not extend one that was seen before. Somebody runs a copy, or rewrote the log.";
    BAD_CHECKPOINT = 507, History, "a checkpoint does not verify",
        "Its signature or its root is wrong.";
    REPLAY_DIFFERS = 508, History, "replay does not give the live state",
        "A defect: please report it, with the output of `smgr replay`.";
    ILLEGAL_EVENT = 509, History, "an event does not follow from those before it",
        "Replay stopped at the named event.";
    NEEDS_NEWER = 510, History, "written by a newer smgr",
        "The log holds a critical event that this version does not know. Start the newer version again.";
    CURSOR_GONE = 511, NotFound, "that part of the history is no longer kept",
        "Retention dropped it; its checkpoint is still there. Read from the oldest event instead.";
    CURSOR_UNKNOWN = 512, NotFound, "no such place in this history",
        "The cursor belongs to another log, or lies in the future.";
    NOT_A_LOG = 513, NotFound, "there is no history here",
        "The folder holds no log. Name the folder that holds `log/`, or the node.";

    NO_SUCH_SERVICE = 601, NotFound, "no such service",
        "`smgr status` lists the services. Files in `services.d` count after `smgr apply`.";
    NO_SUCH_INSTANCE = 602, NotFound, "no such instance",
        "Instances are numbered from 0 to `instances` minus 1.";
    NO_SUCH_NODE = 603, NotFound, "no such node",
        "Nodes are named by `node.id` of their own file.";
    EMPTY_SELECTION = 604, NotFound, "nothing was selected",
        "An empty selection is never read as everything.";
    NO_SUCH_ACTION = 605, NotFound, "the service declares no such action",
        "Actions are declared in the spec, as `[action.NAME]`.";
    BAD_PARAMETER = 606, Usage, "a parameter is not what the action takes",
        "The spec says which parameters there are, of which type, and within which bounds.";
    MISSING_PARAMETER = 607, Usage, "a parameter is missing",
        "It has no default, so it must be given: `NAME=VALUE`.";
    NO_RELOAD = 608, Refused, "the service does not say how it reloads",
        "Declare `[reload]` in its spec, or use `smgr restart`.";
    NOT_RUNNING = 609, Refused, "the service is not running",
        "A signal, a reload or an action needs a process.";
    SERVICE_EXISTS = 610, Refused, "there is a service of this name already",
        "Choose another name, or remove the old one: `smgr remove NAME`.";
    DISABLED = 611, Refused, "the service is switched off",
        "Its spec says `enabled = false`.";
    ACTION_FAILED = 612, ActionFailed, "the action ran and failed",
        "Its exit code and its last lines are in the history.";
    OUTCOME_UNKNOWN = 613, Unknown, "the outcome is not known",
        "Some nodes did not answer in time, or the agent died half-way through an act that may not be repeated. The \
         nodes are named. Unknown is never success.";
    NOT_READY = 614, NotReady, "the service did not become ready",
        "It runs on, or is tried again, as its spec says. `smgr status SERVICE` shows why.";
    SUPERSEDED = 615, Aborted, "something newer took its place",
        "A later wish for the same service won before this one was done.";
    SPAWN_FAILED = 616, NotReady, "the program could not be started",
        "The kernel refused to execute it: no such file, no permission, or a limit. The reason stands beside it.";
    NO_SUCH_USER = 617, Refused, "no such user on this node",
        "The user or group that the spec names does not exist here.";
    NOT_RELIEVED = 629, NotReady, "the new run did not take over; the old one serves on",
        "With `update.method = \"handover\"` the run before goes on until the next one is ready and its checks pass. The \
         reason stands beside it. `smgr restart` tries again, and so does a spec that is changed once more.";
    NOT_STOPPED = 630, NotReady, "the service did not end",
        "Processes of it are still there, after the stop signal and after KILL. `smgr status SERVICE` shows them; a \
         process in an uninterruptible call of the kernel ends when that returns.";
    NOT_CONFIRMED = 631, Refused, "the action wants a yes from a person",
        "Its spec says `confirm = true`. On a terminal the question is asked; elsewhere say `--yes`, and over HTTP \
         `\"confirmed\": true`.";

    RELEASE_RETURNED = 701, RolledBack, "the release did not become healthy, and the node returned",
        "Its processes ended, or were not healthy in time. The service runs again from what it ran from before. \
         `smgr history SERVICE` shows the exit code and the last lines.";
    RETURN_FAILED = 702, RollbackFailed, "the release failed, and so did the return",
        "The service does not become ready from what it ran from before either. A person is needed.";
    NO_WAY_BACK = 703, RollbackFailed, "the release failed, and there is nothing to return to",
        "It was the first one here. Its processes are tried again as the spec says; deploy another one, or stop the \
         service.";
    ARTIFACT_UNAVAILABLE = 704, Unreachable, "the artifact could not be fetched",
        "None of its sources gave it. Each is named with its reason; nothing of the service has changed.";
    ARTIFACT_DIFFERS = 705, Invalid, "the artifact is not what was signed",
        "Its length or its SHA-256 is not that of the manifest. It was thrown away.";
    BAD_ARCHIVE = 706, Invalid, "the archive cannot be taken",
        "It is damaged, or it holds something that a release may not: absolute paths, `..`, links that lead out, \
         devices, names that are not text, or too much.";
    BAD_MANIFEST = 707, Invalid, "the release cannot be taken",
        "Its manifest does not read, or says something that it may not.";
    NO_EARLIER_RELEASE = 708, NotFound, "there is no earlier good release here",
        "The node knows of none that was healthy, or rolling back is forbidden by `release.rollback`.";
    RELEASE_CHANGED = 709, Invalid, "the files of the release were changed on this node",
        "They are not what was verified when it was staged, so nothing is started from them. Deploy it again.";
    RELEASE_GONE = 710, NotFound, "the files of this release are not here any more",
        "Only the last good ones are kept (`release.keep`). Deploy it again with its artifact.";

    WRONG_PROGRAM = 711, RolledBack, "another program runs than the release has",
        "The process runs a file of another release, or one that was exchanged under it. Look at what `exec` leads to: \
         `${release}` is the folder of the release itself.";
    NO_SUCH_ROLLOUT = 720, NotFound, "no such rollout",
        "No controller that answers knows a rollout of this name, or more than one begins like it. `smgr rollout list` \
         shows those that are remembered.";
    ROLLOUT_UNDER_WAY = 721, Refused, "another rollout of the service is under way",
        "One at a time. Wait for its end, abort it (`smgr rollout abort`), or let the spec say \
         `rollout.on_conflict = \"supersede\"`.";
    ROLLOUT_NOT_SO = 722, Refused, "the rollout is not in a state for this",
        "It has ended, is not paused, or waits for nobody. `smgr rollout show` says how it stands.";
    NO_PLAN = 723, Invalid, "no plan can be made of this wish",
        "Its nodes, its spec and the roster do not make a plan; the reason stands beside it.";
    NO_LEADER = 724, Unreachable, "no controller leads",
        "None of them answered, or none holds the lease at this moment. Nothing was begun that was not accepted; the \
         same command can be given again.";
    ROSTER_CHANGED = 725, Refused, "the roster that the wish names is not in force",
        "Nodes or labels changed between the signature and now, here or at the controller. Give the command again.";
    WISH_GONE = 726, NotFound, "the wish behind the rollout is not here any more",
        "Controllers keep the signed wishes of the last rollouts only. Deploy the release again with its files.";

    INTERNAL = 901, Internal, "a defect of smgr",
        "This should not happen. Please report it with the text that was printed.";
    IO = 902, Internal, "the machine refused something that smgr needs",
        "A call to the kernel failed; the reason stands beside it.";
    KEEPER_GONE = 903, Unreachable, "the keeper is away",
        "The part that holds the processes is being started again. Services run on; try again in a moment.";
}
