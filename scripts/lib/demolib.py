"""What the parts of the demo have in common: how they run smgr, and how they check what they show."""

import contextlib
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

REPOSITORY = Path(__file__).resolve().parents[2]
SMGR = os.environ["SMGR_BIN"]
# Each wait has an end; a busy machine is slow, not broken.
PATIENCE_SECONDS = 60.0


class Failed(Exception):
    """A check that did not hold."""


def check(holds: bool, what: str, found: object = None) -> None:
    if not holds:
        raise Failed(f"{what}" + (f"; found {found}" if found is not None else ""))
    print(f"  ok    {what}", flush=True)


def title(text: str) -> None:
    print(f"\n-- {text}", flush=True)


def until(what: str, look, seconds: float = PATIENCE_SECONDS):
    """Waits until `look` returns something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port: int, method: str, path: str) -> tuple[int, str, str]:
    """Asks a shop for a page. Returns the status, the page, and whether it came from the cache."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers.get("X-Cache", "")


def run(line, environment: dict[str, str], folder: Path, *, exits: int | None, shown: str | None):
    """Runs a program, shows it as `shown` with what it said, and demands how it exits."""
    if shown is not None:
        print(f"$ {shown}", flush=True)
    ran = subprocess.run(
        line, cwd=folder, env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL,
        timeout=4 * PATIENCE_SECONDS,
    )
    if shown is not None:
        print(ran.stdout + ran.stderr, end="", flush=True)
    if exits is not None and ran.returncode != exits:
        raise Failed(f"{shlex.join(map(str, line))} exits with {exits}; it exited with {ran.returncode}\n"
                     f"{ran.stdout}{ran.stderr}")
    return ran


def smgr(line, environment: dict[str, str], folder: Path, *, exits: int | None, shown=None):
    """Runs smgr. `shown` is the part of the line that says something."""
    said = None if shown is None else f"smgr {shlex.join(map(str, shown))}"
    return run([SMGR, *line], environment, folder, exits=exits, shown=said)


def give_keys(state: Path, job: Path) -> dict:
    """What a CI runner is given: a key that may command, and the trust document. Returns what it says of the node."""
    (job / "keys").mkdir(mode=0o700, parents=True)
    job.chmod(0o700)
    for name in ("operator.key", "operator.pub", "operator.nk"):
        shutil.copy2(state / "keys" / name, job / "keys" / name)
    for name in ("trust.smgr", "root.pub"):
        shutil.copy2(state / name, job / name)
    return json.loads((state / "node.json").read_text())


def main(show: Callable[[Path], dict[str, str]]) -> int:
    """Runs a part of the demo in a folder of its own and prints its figures."""
    folder = Path(tempfile.mkdtemp(prefix="smgr-demo."))
    # Where it is as it should be, nothing stays; where not, there is something to look at.
    try:
        figures = show(folder)
    except Failed as failure:
        print(f"\nFAILED: {failure}\n  what it left to look at: {folder}", file=sys.stderr, flush=True)
        return 1
    shutil.rmtree(folder)
    title("figures of this run (development build)")
    for name, figure in figures.items():
        print(f"  {name:<28} {figure}")
    print("\neverything held", flush=True)
    return 0
