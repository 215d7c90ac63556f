"""The figure of a handover: a web server is restarted, and brought from release to release, while somebody asks it all the time.

Beside it stands what the machine itself takes for it: the same load while an unrelated server of the same kind starts.
"""

import contextlib
import multiprocessing
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tarfile
import time

from managers import Smgr
from report import at_most, figure, note

SWITCHES = 20
CALLERS = 2
# Between two requests of a caller: some 400 a second come together, which leaves the machine room.
PAUSE_SECONDS = 0.004
SETTLE_SECONDS = 1.0
# What a switch leaves behind belongs to it: the old run ends after the new one has taken over.
AFTER_SECONDS = 0.2
READY_SECONDS = 30
REQUEST_SECONDS = 10
RATIO_MAX = 2.0
SERVER = pathlib.Path(__file__).resolve().parents[2] / "examples" / "handover" / "server.py"


class Web(Smgr):
    """smgr over one web server on a socket that outlives its runs."""

    def __init__(self, site, port: int) -> None:
        super().__init__(site.root, site.stamp, 0, site.program, None)
        self.port = port
        self.version = 0

    def deploy(self) -> None:
        """Packs the next release and brings it up: a server of its own in a folder of its own."""
        self.version += 1
        packed = self.root / f"web-{self.version}.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(SERVER, "server.py")
        user = 'user = "root"\n' if os.geteuid() == 0 else ""
        spec = self.root / "web.toml"
        text = f"""exec = ["{sys.executable}", "${{release}}/server.py", "--folder", "{self.root}"]
{user}env.VERSION = "{self.version}"
socket.http.listen = "tcp:127.0.0.1:{self.port}"
ready.by = "notify"
update.method = "handover"
rollout.min_healthy_time = "100ms"
"""
        spec.write_text(text, encoding="utf-8")
        self.call("deploy", "web", "-f", str(spec), "--artifact", str(packed))

    def up(self) -> None:
        self.call("up", "-d")
        self.deploy()

    def switch(self, number: int) -> None:
        """Restarts it, and every other time brings up the next release."""
        before = ask(self.port)[2]
        if number % 2:
            self.call("restart", "web")
        else:
            self.deploy()
        deadline = time.monotonic() + READY_SECONDS
        while ask(self.port)[2] == before:
            if time.monotonic() > deadline:
                raise TimeoutError("the new run does not answer")
            time.sleep(0.01)


def ask(port: int) -> tuple[int, int, bytes]:
    """Makes a request; returns when it began, how many nanoseconds it took (-1 when it failed), and the answer."""
    began = time.monotonic_ns()
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=REQUEST_SECONDS) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            while part := stream.recv(4096):
                answer += part
    except OSError as error:
        return began, -1, str(error).encode()
    took = time.monotonic_ns() - began
    return (began, took, answer) if answer.startswith(b"HTTP/1.1 200") else (began, -1, answer)


def call_on(port: int, is_over, told) -> None:
    """Asks until it is told to end, and says then how each request went."""
    samples = []
    while not is_over.is_set():
        began, took, answer = ask(port)
        samples.append((began, took, answer if took < 0 else b""))
        time.sleep(PAUSE_SECONDS)
    told.put(samples)


@contextlib.contextmanager
def load(port: int, samples: list):
    """Has callers ask all the time, and leaves what they saw in `samples`."""
    is_over, told = multiprocessing.Event(), multiprocessing.Queue()
    callers = [multiprocessing.Process(target=call_on, args=(port, is_over, told)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        is_over.set()
        for _ in callers:
            samples.extend(told.get(timeout=2 * REQUEST_SECONDS))
        for caller in callers:
            caller.join()


def start_beside(folder: pathlib.Path) -> None:
    """Starts a server of the same kind that has nothing to do with the other, waits until it is ready, and ends it."""
    words = folder / "beside.sock"
    words.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(words))
        ear.settimeout(READY_SECONDS)
        environment = dict(os.environ, NOTIFY_SOCKET=str(words), LISTEN_FDS="1", LISTEN_FDNAMES="http")
        command = ["/bin/sh", "-c", f'LISTEN_PID=$$ exec "$@" 3<&{listener.fileno()}', "sh"]
        server = subprocess.Popen(
            [*command, sys.executable, str(SERVER), "--folder", str(folder)],
            env=environment,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in ear.recv(4096):
                pass
        finally:
            server.terminate()
            server.wait()


def windows(act) -> list[tuple[int, int]]:
    """Does it so many times, and returns from when to when each time it was felt."""
    spans = []
    for number in range(SWITCHES):
        time.sleep(SETTLE_SECONDS)
        began = time.monotonic_ns()
        act(number)
        time.sleep(AFTER_SECONDS)
        spans.append((began, time.monotonic_ns()))
    return spans


def p99_ms(samples: list, spans: list[tuple[int, int]]) -> float:
    """Returns how long 99 of 100 requests took at most that were under way in one of the spans."""
    took = [
        took / 1e6
        for began, took, _ in samples
        if took >= 0 and any(began <= to and began + took >= since for since, to in spans)
    ]
    note(f"  {len(took)} requests, p50 {statistics.median(took):.2f} ms, max {max(took):.2f} ms")
    return statistics.quantiles(took, n=100)[98]


def update(site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    web, samples = Web(site, port), []
    web.up()
    try:
        with load(port, samples):
            beside = windows(lambda _: start_beside(web.root))
            switches = windows(web.switch)
    finally:
        web.down()
    floor, smgr = p99_ms(samples, beside), p99_ms(samples, switches)
    failed = [answer for _, took, answer in samples if took < 0]
    note(f"  {len(samples)} requests in all, {len(failed)} failed: {failed[:3]}")
    site.clear()
    at_most("update", smgr, "ms", "beside", floor, RATIO_MAX)
    figure("update-failed", len(failed), "requests", "allowed", 0, 0, not failed)
