"""The figures of a fleet: `smgr emulate` runs the nodes in one process, over real connections to a real nats-server.

What of a node is emulated stands in `smgr emulate --help`: gate, core, events and signatures are those of an agent.
"""

import collections
import contextlib
import datetime
import json
import os
import pathlib
import select
import statistics
import subprocess
import time

import salt
from figures import await_port, free_port, measured
from report import at_least, at_most, figure, missing, note

PING_NODES = (1_000, 10_000)
UP_SECONDS = 180
# With less than that of a bare fan-out, smgr would be what its nodes wait for.
PING_RATIO = 0.6
SALT_RATIO = 1 / 20
SALT_ROUNDS = 7
INGEST_NODES = 1_000
BACKLOG = 600
FETCHED_PER_SECOND = 50_000
LIVE_PER_SECOND = 10_000
# A little more than has to be reached.
OFFERED_PER_SECOND = 10_500
LIVE_SECONDS = 10
MEMORY_NODES = (1_000, 3_000, 10_000)
NODE_KIB = 15
STORM_NODES = 10_000
# Recorded while the server is away, to be fetched when it is back.
STORM_EVENTS_PER_SECOND = 200
STORM_AWAY_SECONDS = 3
# After that some orders of the first wave are carried out, some are on their way, and some wait.
STORM_ORDERS_SECONDS = 2
STORM_SECONDS = 30
IN_STEP_SECONDS = 240
ORDER_NODES = (100, 1_000, 10_000)
# Names of nodes are longer in a larger fleet, by a letter or two in each of the few places where they stand.
ORDER_RATIO = 1.02
DEPLOY_NODES = 20
DEPLOY_OVER_SECONDS = 2
DEPLOY_SECONDS = 300
ENDED = ("rolled_back", "rollback_failed", "stopped", "aborted", "superseded")
HEALTHY_SECONDS = 1
BAKE_SECONDS = 2
TAKEOVER_NODES = 200
# Waves of a twentieth that last three seconds and do not bake: one is always open.
TAKEOVER_WAVE = {"parallel": "5%", "healthy": 3, "bake": 0}
TAKEOVER_LEASES = 2
TAKEOVER_SECONDS = 300


class Fleet:
    """A nats-server, an emulated fleet on it, and controllers, in a folder of their own."""

    def __init__(self, site, nodes: int, *more: object, controllers: int = 1) -> None:
        self.site = site
        self.nodes = nodes
        self.controllers = controllers
        self.more = more
        self.state: pathlib.Path = site.root / "fleet"
        self.url = f"nats://127.0.0.1:{free_port()}"
        self.running: list[subprocess.Popen] = []
        self.emulator: subprocess.Popen | None = None

    def __enter__(self):
        if self.site.nats is None:
            raise RuntimeError("there is no nats-server")
        self.site.root.mkdir(parents=True, exist_ok=True)
        try:
            self.start_server(self.url)
            words = [self.site.program, "emulate", "--state", self.state, "--bus", self.url]
            words += ["--nodes", self.nodes, "--controllers", self.controllers, *self.more]
            began = time.monotonic()
            self.emulator = self.start(words, "listen")
            note(f"  {self.nodes} nodes listen after {time.monotonic() - began:.1f} s")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_failed) -> None:
        for process in reversed(self.running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.running.clear()

    def start_controller(self, number: int = 1) -> subprocess.Popen:
        words = [self.site.program, "controller", "--state", self.state / "fleet" / f"c{number}"]
        controller = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL)
        self.running.append(controller)
        return controller

    def begin(self, release: int, healthy: int = HEALTHY_SECONDS, bake: int = BAKE_SECONDS, parallel: str = "35%") -> None:
        """Begins to deploy a release to all nodes."""
        spec = self.site.root / "web.toml"
        spec.write_text(
            f'description = "release {release}"\nexec = ["/bin/sleep", "{release}"]\nuser = "root"\n'
            f'[rollout]\nmin_healthy_time = "{healthy}s"\nbake_time = "{bake}s"\n'
            f'canary = 1\nmax_parallel = ["{parallel}"]\n',
            encoding="ascii",
        )
        words = ["deploy", "web", "-f", spec, "--release-version", release, "--select", "*", "--detach"]
        ran = self.smgr(*words)
        if ran.returncode != 0:
            raise RuntimeError(f"the deploy ended with {ran.returncode}: {ran.stderr[-600:]}")

    def wait_deployed(self, release: int, within: float) -> None:
        """Waits until the deploy of a release, one of as many, has succeeded."""
        deadline = time.monotonic() + within
        while True:
            # Newest first: name, service, state.
            rows = self.smgr("rollout", "list").stdout.splitlines()[1:]
            states = [row.split()[2] for row in rows]
            if len(states) >= release and states[0] == "succeeded":
                return
            if time.monotonic() > deadline or (len(states) >= release and states[0] in ENDED):
                raise RuntimeError(f"the rollout is {states[:1]}")
            # Who looks often is in the way of a large fleet, on the same processors.
            time.sleep(max(0.05, self.nodes / 20_000))

    def deploy(self, release: int, within: float) -> float:
        """Deploys a release to all nodes. Returns how long it took until that had succeeded."""
        began = time.monotonic()
        self.begin(release)
        self.wait_deployed(release, within)
        return time.monotonic() - began

    def wait_mid_wave(self, release: int, share: float) -> dict:
        """Waits until so many of all nodes run a release and a wave is open; returns what is shown then."""
        deadline = time.monotonic() + DEPLOY_SECONDS
        while True:
            ran = self.smgr("rollout", "list", "-o", "json")
            rows = json.loads(ran.stdout)["rollouts"] if ran.returncode == 0 else []
            if len(rows) >= release:
                ran = self.smgr("rollout", "show", rows[0]["rollout"], "-o", "json")
                shown = json.loads(ran.stdout) if ran.returncode == 0 else {"nodes": [], "waves": []}
                done = sum(node["state"] == "healthy" for node in shown["nodes"])
                is_open = any(wave["state"] == "rolling" for wave in shown["waves"])
                if is_open and done >= share * self.nodes:
                    return shown
            if time.monotonic() > deadline:
                raise TimeoutError("no wave was seen under way")
            time.sleep(max(0.05, self.nodes / 20_000))

    def events(self) -> list[dict]:
        """All events of all logs that a controller has."""
        ran = self.smgr("events", "--fleet", "--since", "1d", "-o", "jsonl", within=600)
        if ran.returncode != 0:
            raise RuntimeError(f"the events cannot be read: {ran.stderr[-300:]}")
        return [json.loads(line) for line in ran.stdout.splitlines()]

    def touched(self, events: list[dict], releases: int) -> tuple[list[str], list[str]]:
        """The nodes that carried out the orders of these releases more than once each, and those that did not at all.

        An order that comes again from another leader is taken again, since a node remembers the term; what counts is
        what it did then: began to apply a release, and started its program.
        """
        names = {f"n{number}" for number in range(1, self.nodes + 1)}
        done = collections.Counter((event["type"], event["origin"]) for event in events)
        counts = {name: [done[kind, name] for kind in ("release.applied", "instance.started")] for name in names}
        twice = sorted(name for name in names if max(counts[name]) > releases)
        never = sorted(name for name in names if min(counts[name]) < releases)
        return twice, never

    def intake(self) -> dict | None:
        """What the controller says of the logs that it takes in."""
        ran = self.smgr("status", "-o", "json")
        return json.loads(ran.stdout).get("intake") if ran.returncode == 0 else None

    def wait_in_step(self, within: float = IN_STEP_SECONDS) -> None:
        """Waits until the controller has heard every node and has its log up to what the node told last."""
        deadline = time.monotonic() + within
        while True:
            logs = (self.intake() or {}).get("logs", [])
            behind = [log["origin"] for log in logs if not in_step(log)]
            if len(logs) == self.nodes and not behind:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(behind)} of {len(logs)} logs are not in step: {behind[:5]}")
            time.sleep(0.5)

    def start_server(self, url: str | None = None) -> str:
        """Starts the server of the fleet, or one for somebody else: a process has no room for 20,000 connections."""
        url = url or f"nats://127.0.0.1:{free_port()}"
        port = int(url.rsplit(":", 1)[1])
        configuration = self.site.root / f"nats-{port}.conf"
        # A question to all makes every node write at the same moment.
        configuration.write_text(
            f'listen: "127.0.0.1:{port}"\nmax_connections: 100000\nmax_pending: 256MB\n'
            f'jetstream {{ store_dir: "{self.site.root}/jetstream-{port}" }}\n',
            encoding="ascii",
        )
        quiet = subprocess.DEVNULL
        words = [self.site.nats, "-c", configuration]
        self.running.insert(0, subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet))
        await_port(port)
        return url

    def start(self, words: list, sign: str) -> subprocess.Popen:
        """Starts a process and waits for the line with which it says that it is there."""
        command = [str(word) for word in words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.running.append(process)
        deadline = time.monotonic() + UP_SECONDS
        text = ""
        while sign not in text:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([process.stdout], [], [], max(left, 0))
            part = os.read(process.stdout.fileno(), 4096) if readable else b""
            if not part:
                raise RuntimeError(f"{command[:2]} did not begin: {text}")
            text += part.decode()
        return process

    def smgr(self, *words, within: float = 120) -> subprocess.CompletedProcess:
        command = [str(self.site.program), "--state", str(self.state), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=within)


def in_step(log: dict) -> bool:
    """Whether all that a node told of its log is here. It may have told less than it published."""
    head, told = log["head"], log["told"]
    return bool(log["reachable"] and head and told) and not log["doubt"] and sequence(head) >= sequence(told)


def sequence(cursor: str) -> tuple[str, int]:
    epoch, number = cursor.rsplit("/", 2)[1:]
    return epoch, int(number)


def resident_kib(process: subprocess.Popen) -> int:
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0])


def ping(site) -> None:
    for nodes in PING_NODES:
        with Fleet(site, nodes) as fleet:
            bare = fleet.start_server()
            fleet.start([site.figures, "bare-nodes", bare, nodes], "listening")
            line = measured(site, "ping", fleet.state, bare, nodes)["ping"]
        site.clear()
        at_least(f"ping-{nodes}", line["smgr"], line["unit"], line["other"], line["measured"], PING_RATIO)
    ping_salt(site)


def ping_salt(site) -> None:
    """One command asks one node, as a person types it, in turn with Salt's."""
    programs = salt.installed(site.salt)
    if programs is None:
        return missing("ping-salt", "salt: not installed")
    ours, theirs = [], []
    with Fleet(site, 2) as fleet, salt.Salt(programs, site.root / "salt") as peer:
        for _ in range(SALT_ROUNDS):
            for asked, took in ((lambda: fleet.smgr("ping", "--node", "n2").returncode == 0, ours), (peer.ping, theirs)):
                began = time.monotonic()
                if not asked():
                    raise RuntimeError("a node did not answer")
                took.append((time.monotonic() - began) * 1000)
    site.clear()
    at_most("ping-salt", statistics.median(ours), "ms", "salt", statistics.median(theirs), SALT_RATIO)


def ingest(site) -> None:
    with Fleet(site, INGEST_NODES, "--backlog", BACKLOG) as fleet:
        fleet.start_controller()
        line = measured(site, "ingest", fleet.state, INGEST_NODES, BACKLOG)["ingest"]
    site.clear()
    holds = line["smgr"] >= FETCHED_PER_SECOND
    figure("ingest", line["smgr"], line["unit"], line["other"], line["measured"], FETCHED_PER_SECOND, holds)
    with Fleet(site, INGEST_NODES, "--rate", OFFERED_PER_SECOND) as fleet:
        fleet.start_controller()
        fleet.wait_in_step()
        began, before = time.monotonic(), fleet.intake()
        time.sleep(LIVE_SECONDS)
        took, after = time.monotonic() - began, fleet.intake()
    site.clear()
    # What was dropped on its way and fetched is here as well, but did not come live.
    live, fetched = ((after[how] - before[how]) / took for how in ("live", "fetched"))
    note(f"  live {live:.0f}/s, fetched {fetched:.0f}/s, {after['gaps'] - before['gaps']} gaps")
    figure("ingest-live", live, "/s", "offered", OFFERED_PER_SECOND, LIVE_PER_SECOND, live >= LIVE_PER_SECOND)


def controller_memory(site) -> None:
    sizes = []
    for nodes in MEMORY_NODES:
        with Fleet(site, nodes) as fleet:
            controller = fleet.start_controller()
            fleet.wait_in_step()
            # What it needed to get there is given back, as far as it ever is.
            time.sleep(10)
            sizes.append(resident_kib(controller))
        site.clear()
        note(f"  {nodes} nodes: {sizes[-1]} KiB")
    (few, small), (many, large) = (MEMORY_NODES[0], sizes[0]), (MEMORY_NODES[-1], sizes[-1])
    growth = (large - small) / (many - few)
    middle = (sizes[1] - small) / (MEMORY_NODES[1] - few)
    figure("controller-memory", growth, "KiB", "to-3000", middle, NODE_KIB, growth <= NODE_KIB)


def storm(site) -> None:
    with Fleet(site, STORM_NODES, "--rate", STORM_EVENTS_PER_SECOND) as fleet:
        fleet.start_controller()
        fleet.wait_in_step()
        before = fleet.smgr("ping", "--timeout", "20s")
        if before.returncode != 0:
            raise RuntimeError(f"the fleet did not answer before the storm: {before.stderr[-200:]}")
        # The first release of a service has no canary: each wave is a third of the fleet, and its orders are under way.
        fleet.begin(1)
        time.sleep(STORM_ORDERS_SECONDS)
        server = fleet.running[0]
        server.kill()
        server.wait()
        fleet.running.remove(server)
        time.sleep(STORM_AWAY_SECONDS)
        fleet.start_server(fleet.url)
        began = time.monotonic()
        while fleet.smgr("ping", "--timeout", "5s").returncode != 0:
            if time.monotonic() - began > IN_STEP_SECONDS:
                raise TimeoutError("nodes are still away")
        back = time.monotonic() - began
        fleet.wait_in_step()
        took = time.monotonic() - began
        note(f"  all nodes are back after {back:.1f} s, and their logs in step after {took:.1f} s")
        fleet.wait_deployed(1, within=DEPLOY_SECONDS)
        note(f"  the rollout has succeeded after {time.monotonic() - began:.1f} s")
        fleet.wait_in_step()
        forked = (fleet.intake() or {}).get("forked")
        if forked:
            raise RuntimeError(f"{forked} logs are not what they were")
        twice, lost = fleet.touched(fleet.events(), releases=1)
        note(f"  orders executed twice: {len(twice)}, lost: {len(lost)} {(twice + lost)[:5]}")
    site.clear()
    figure("storm", took, "s", "answering", back, STORM_SECONDS, took <= STORM_SECONDS and not twice and not lost)


def takeover(site) -> None:
    with Fleet(site, TAKEOVER_NODES, controllers=2) as fleet:
        controllers = {f"c{number}": fleet.start_controller(number) for number in (1, 2)}
        fleet.wait_in_step()
        fleet.deploy(1, within=TAKEOVER_SECONDS)
        fleet.begin(2, **TAKEOVER_WAVE)
        leader = fleet.wait_mid_wave(2, share=0.2)["led_by"][-1]
        setup = fleet.state / "fleet" / leader / "controller.json"
        lease = json.loads(setup.read_text(encoding="utf-8"))["lease_ms"] / 1000
        controllers[leader].kill()
        killed = time.time()
        controllers[leader].wait()
        fleet.wait_deployed(2, within=TAKEOVER_SECONDS)
        fleet.wait_in_step()
        events = fleet.events()
        # That another one leads is no step of the rollout.
        steps = ("rollout.node_healthy", "rollout.wave_settled", "rollout.wave_started")
        told = [event for event in events if event["type"] in steps and event["origin"] != leader]
        times = sorted(datetime.datetime.fromisoformat(event["at"]).timestamp() for event in told)
        took = next(at for at in times if at > killed) - killed
        twice, never = fleet.touched(events, releases=2)
        note(f"  {leader} was killed; touched twice: {len(twice)}, never: {len(never)} {(twice + never)[:5]}")
    site.clear()
    holds = took <= TAKEOVER_LEASES * lease and not twice and not never
    figure("takeover", took, "s", "lease", lease, TAKEOVER_LEASES, holds)


def order_size(site) -> None:
    sizes = []
    for nodes in ORDER_NODES:
        with Fleet(site, nodes) as fleet:
            fleet.start_controller()
            fleet.wait_in_step()
            # The first release of a service has no canary, and orders of later waves carry what canaries said.
            fleet.deploy(1, within=DEPLOY_SECONDS)
            counter = fleet.start([site.figures, "order-size", fleet.url, nodes], "listening")
            took = fleet.deploy(2, within=DEPLOY_SECONDS)
            line = json.loads(counter.stdout.read().decode().splitlines()[-1])
            note(f"  {nodes} nodes: {line['smgr']:.0f} bytes a node, {took:.1f} s")
            sizes.append(line["smgr"])
        site.clear()
    figure("order-size", sizes[-1], "B", "at-100", sizes[0], ORDER_RATIO, max(sizes) <= ORDER_RATIO * sizes[0])


def deploy(site) -> None:
    with Fleet(site, DEPLOY_NODES) as fleet:
        fleet.start_controller()
        fleet.wait_in_step()
        fleet.deploy(1, within=DEPLOY_SECONDS)
        took = fleet.deploy(2, within=DEPLOY_SECONDS)
    site.clear()
    # A canary and three waves: each node stays healthy for a while, then the wave bakes.
    waits = 4 * (HEALTHY_SECONDS + BAKE_SECONDS)
    figure("deploy", took, "s", "waits", waits, waits + DEPLOY_OVER_SECONDS, took <= waits + DEPLOY_OVER_SECONDS)
