"""The figures of a fleet: `smgr emulate` runs the nodes in one process, over real connections to a real nats-server.

What of a node is emulated stands in `smgr emulate --help`: gate, core, events and signatures are those of an agent.
"""

import contextlib
import os
import pathlib
import select
import subprocess
import time

from figures import await_port, free_port, measured
from report import at_least, note

PING_NODES = (1_000, 10_000)
UP_SECONDS = 180
# With less than that of a bare fan-out, smgr would be what its nodes wait for.
PING_RATIO = 0.6


class Fleet:
    """A nats-server, an emulated fleet on it, and controllers, in a folder of their own."""

    def __init__(self, site, nodes: int, controllers: int = 1) -> None:
        self.site = site
        self.nodes = nodes
        self.controllers = controllers
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
            words += ["--nodes", self.nodes, "--controllers", self.controllers]
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


def ping(site) -> None:
    for nodes in PING_NODES:
        with Fleet(site, nodes) as fleet:
            bare = fleet.start_server()
            fleet.start([site.figures, "bare-nodes", bare, nodes], "listening")
            line = measured(site, "ping", fleet.state, bare, nodes)["ping"]
        site.clear()
        at_least(f"ping-{nodes}", line["smgr"], line["unit"], line["other"], line["measured"], PING_RATIO)
