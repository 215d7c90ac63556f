"""smgr, runit and supervisord, each over N copies of the same static service with its output captured."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

WAIT_SECONDS = 60
SWEEP = pathlib.Path(__file__).parent.parent / "lib" / "sweep"


class Service:
    """A copy of the stamp service: a folder of its own, in which each start leaves a line."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.name = folder.name
        folder.mkdir(parents=True)

    def starts(self) -> list[tuple[int, int]]:
        """Returns (nanoseconds of CLOCK_MONOTONIC, pid) of each start so far."""
        try:
            text = (self.folder / "starts").read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        lines = (line.split() for line in text.splitlines(keepends=True) if line.endswith("\n"))
        return [(int(at), int(pid)) for at, pid in lines]


class Manager:
    """One service manager with its services. `up` returns when it was told to start them, not when they run."""

    name: str

    def __init__(self, root: pathlib.Path, stamp: pathlib.Path, count: int, label: str = "") -> None:
        self.root = root / (label or self.name)
        self.root.mkdir(parents=True)
        self.stamp = stamp
        self.services = [Service(self.root / "s" / f"s{number:03}") for number in range(count)]
        self.began_ns = 0

    def wait_started(self) -> int:
        """Waits until every service has begun once; returns when the last one did."""
        deadline = time.monotonic() + WAIT_SECONDS
        waiting = list(self.services)
        last = 0
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {len(waiting)} services have not begun")
            time.sleep(0.02)
            begun = [service.starts() for service in waiting]
            last = max([last] + [starts[0][0] for starts in begun if starts])
            waiting = [service for service, starts in zip(waiting, begun) if not starts]
        return last

    def up(self) -> None:
        raise NotImplementedError

    def down(self) -> None:
        raise NotImplementedError


class Smgr(Manager):
    name = "smgr"

    def __init__(self, root, stamp, count, program, nats, label="", preload=None) -> None:
        super().__init__(root, stamp, count, label)
        self.program = program
        self.state = self.root / "state"
        self.environment = dict(os.environ, SMGR_NATS_SERVER=str(nats or "off"))
        self.preload = preload
        user = 'user = "root"\n' if os.geteuid() == 0 else ""
        self.project = "".join(
            f'[service.{service.name}]\nexec = ["{stamp}"]\nworking_dir = "{service.folder}"\n{user}'
            for service in self.services
        )

    def call(self, *words: str, preload=None) -> None:
        environment = dict(self.environment, **({"LD_PRELOAD": str(preload)} if preload else {}))
        command = [str(self.program), "--state", str(self.state), *words]
        ran = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise RuntimeError(f"smgr {' '.join(words)} ended with {ran.returncode}: {ran.stderr}{ran.stdout}")

    def up(self) -> None:
        (self.root / "smgr.toml").write_text(self.project, encoding="utf-8")
        self.began_ns = time.monotonic_ns()
        self.call("up", "-d", preload=self.preload)

    def down(self) -> None:
        try:
            self.call("down")
        finally:
            subprocess.run([SWEEP, str(self.state)], check=False)

    def parts(self) -> dict[str, int]:
        """Returns the pids of the launcher and the three parts."""
        pid = lambda part: int((self.state / "run" / part / "pid").read_text().split()[0])
        parts = {part: pid(part) for part in ("keeper", "agent", "uplink")}
        stat = pathlib.Path(f"/proc/{parts['keeper']}/stat").read_text(encoding="ascii")
        parts["launcher"] = int(stat.rsplit(")", 1)[1].split()[1])
        return parts


class Runit(Manager):
    """Each service with a logger of its own, as runit has it. `run` is the static file itself: no shell."""

    name = "runit"
    needs = ("runsvdir", "runsv", "sv", "svlogd")

    def up(self) -> None:
        for service in self.services:
            shutil.copy2(self.stamp, service.folder / "run")
            log = service.folder / "log"
            (log / "main").mkdir(parents=True)
            (log / "run").write_text("#!/bin/sh\nexec svlogd ./main\n", encoding="ascii")
            (log / "run").chmod(0o755)
        self.began_ns = time.monotonic_ns()
        command = ["runsvdir", "-P", str(self.root / "s")]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def down(self) -> None:
        self.process.send_signal(signal.SIGHUP)  # ends every runsv, which ends its service and its logger
        self.process.wait(WAIT_SECONDS)
        deadline = time.monotonic() + WAIT_SECONDS
        ran = [str(service.folder) for service in self.services]
        while ran and time.monotonic() < deadline:
            ran = [folder for folder in ran if self.supervised(folder)]
            time.sleep(0.05)

    @staticmethod
    def supervised(folder: str) -> bool:
        try:
            pipe = os.open(f"{folder}/supervise/ok", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        os.close(pipe)
        return True

    def parts(self) -> dict[str, int]:
        parts = {"runsvdir": self.process.pid}
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = re.sub(r"\(.*\)", "-", path.read_text(encoding="ascii", errors="replace")).split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:
                parts[f"runsv {fields[0]}"] = int(fields[0])
        return parts


class Supervisord(Manager):
    name = "supervisord"
    needs = ("supervisord",)

    def up(self) -> None:
        logs = self.root / "logs"
        logs.mkdir()
        # autorestart and startsecs as they are; the logs go where they can be removed, the descriptors fit the number.
        text = f"[supervisord]\nnodaemon=true\nlogfile={logs}/supervisord.log\npidfile={self.root}/pid\n"
        text += f"childlogdir={logs}\nminfds={max(1024, 8 * len(self.services))}\n"
        text += "user=root\n" if os.geteuid() == 0 else ""
        for service in self.services:
            text += f"[program:{service.name}]\ncommand={self.stamp}\ndirectory={service.folder}\nautorestart=true\n"
        configuration = self.root / "supervisord.conf"
        configuration.write_text(text, encoding="utf-8")
        self.began_ns = time.monotonic_ns()
        command = ["supervisord", "-c", str(configuration)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def down(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_SECONDS)

    def parts(self) -> dict[str, int]:
        return {"supervisord": self.process.pid}


def lacks(peer: type[Manager]) -> str | None:
    """Says what a peer needs and this machine does not have."""
    without = [program for program in peer.needs if shutil.which(program) is None]
    return f"{peer.name} is not installed ({', '.join(without)})" if without else None
