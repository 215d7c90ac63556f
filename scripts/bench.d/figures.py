"""The figures that come from inside one process: they run benches/figures.rs and judge what it measured."""

import json
import pathlib
import signal
import socket
import subprocess
import time

from report import at_least, at_most, figure, note

HISTORY_EVENTS = 1_000_000
SIGNED_PER_SECOND = 20_000
REPLAYED_PER_SECOND = 1_000_000
VERIFIED_PER_SECOND = 600_000
CRASH_OPEN_MS = 500
SERVER_SECONDS = 10


def measured(site, *words) -> dict[str, dict]:
    command = [str(site.figures), *map(str, words)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {line["figure"]: line for line in map(json.loads, ran.stdout.splitlines())}


def absolute(line: dict, bound: float, holds: bool) -> None:
    figure(line["figure"], line["smgr"], line["unit"], line["other"], line["measured"], bound, holds)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def append(site) -> None:
    port = free_port()
    configuration = site.root / "nats.conf"
    configuration.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{site.root}/jetstream", sync_interval: always }}\n',
        encoding="ascii",
    )
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([site.nats, "-c", configuration], stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        await_port(port)
        lines = measured(site, "append", site.root, f"nats://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()
    site.clear()
    for name, judge, bound in (("append", at_least, 10), ("append-time", at_most, 2.5)):
        line = lines[name]
        judge(name, line["smgr"], line["unit"], line["other"], line["measured"], bound)


def await_port(port: int) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def append_signed(site) -> None:
    line = measured(site, "append-signed", site.root)["append-signed"]
    site.clear()
    absolute(line, SIGNED_PER_SECOND, line["smgr"] >= SIGNED_PER_SECOND)


def replay(site) -> None:
    log = site.root / "log"
    subprocess.run([site.figures, "write-history", log, str(HISTORY_EVENTS)], check=True)
    lines = measured(site, "replay", log)
    site.clear()
    for name, bound in (("replay", REPLAYED_PER_SECOND), ("replay-verified", VERIFIED_PER_SECOND)):
        absolute(lines[name], bound, lines[name]["smgr"] >= bound)


def crash_open(site) -> None:
    log = site.root / "log"
    writer = subprocess.Popen([site.figures, "write-segment", log], stdout=subprocess.PIPE, text=True)
    try:
        told = writer.stdout.readline()
        if "full" not in told:
            raise RuntimeError("the segment was not written")
        time.sleep(0.2)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    line = measured(site, "crash-open", log)["crash-open"]
    site.clear()
    absolute(line, CRASH_OPEN_MS, line["smgr"] <= CRASH_OPEN_MS)


def command(site) -> None:
    smgr = site.smgr(1)
    smgr.up()
    try:
        smgr.wait_started()
        await_bus(smgr.state)
        line = measured(site, "command", smgr.state, smgr.services[0].name)["command"]
    finally:
        smgr.down()
    site.clear()
    at_most("command", line["smgr"], line["unit"], line["other"], line["measured"], 1.5)


def await_bus(state: pathlib.Path) -> None:
    """Waits until the uplink had time to reach the server, which is itself a service of the node."""
    setup = json.loads((state / "node.json").read_text(encoding="utf-8"))
    await_port(int(setup["bus"]["urls"][0].rsplit(":", 1)[1]))
    note("  the bus is there")
    time.sleep(3)
