"""Runs benches by name. Called by scripts/bench, which has built everything and contains what is started here."""

import argparse
import pathlib
import shutil
import sys
import traceback

import figures
import fleet
import processes
import update
from managers import Smgr
from report import note

BENCHES = {
    "restart": processes.restart,
    "startup": processes.startup,
    "idle": processes.idle,
    "update": update.update,
    "command": figures.command,
    "append": figures.append,
    "append-signed": figures.append_signed,
    "replay": figures.replay,
    "replay-verified": figures.replay,
    "crash-open": figures.crash_open,
    "ping": fleet.ping,
    "ingest": fleet.ingest,
    "controller-memory": fleet.controller_memory,
    "storm": fleet.storm,
    "takeover": fleet.takeover,
    "order-size": fleet.order_size,
    "deploy": fleet.deploy,
}


class Site:
    """Where benches run: the programs, and a folder that is empty at the begin of each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root: pathlib.Path = options.folder
        self.program: pathlib.Path = options.smgr
        self.figures: pathlib.Path = options.figures
        self.stamp: pathlib.Path = options.stamp
        self.slow_sync: pathlib.Path = options.slow_sync
        self.nats: pathlib.Path | None = options.nats
        self.salt: pathlib.Path = options.salt
        self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)

    def smgr(self, count: int, label: str = "smgr", preload: pathlib.Path | None = None) -> Smgr:
        return Smgr(self.root, self.stamp, count, self.program, self.nats, label, preload)

    def peer(self, peer, count: int):
        return peer(self.root, self.stamp, count)


def main() -> int:
    parser = argparse.ArgumentParser()
    for path in ("--folder", "--smgr", "--figures", "--stamp", "--slow-sync", "--nats", "--salt"):
        parser.add_argument(path, type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHES]:
        note(f"error: no bench is called {', '.join(unknown)}; there are: {' '.join(BENCHES)}")
        return 2
    site = Site(options)
    failed = False
    done = set()
    for name in options.names or BENCHES:
        bench = BENCHES[name]
        if bench in done:
            continue
        done.add(bench)
        note(f"== {name}")
        site.clear()
        try:
            bench(site)
        except Exception:  # the other benches can still tell something
            failed = True
            note(traceback.format_exc())
            print(f"bench {name} not measured: it failed", flush=True)
    site.clear()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
