"""Salt beside `smgr ping`: one master and one minion in a folder of their own, where Salt could be installed."""

import contextlib
import pathlib
import subprocess
import time

from figures import free_port

UP_SECONDS = 120
ASK_SECONDS = 30


class Salt:
    """A master that takes every key, and a minion called n1. `programs` is the `bin` of a virtual environment."""

    def __init__(self, programs: pathlib.Path, folder: pathlib.Path) -> None:
        self.programs = programs
        self.folder = folder
        self.running: list[subprocess.Popen] = []

    def __enter__(self):
        publish, answer = free_port(), free_port()
        common = f"root_dir: {self.folder}\nuser: root\npublish_port: {publish}\nlog_level: error\n"
        master = f"interface: 127.0.0.1\nret_port: {answer}\nauto_accept: true\nworker_threads: 2\n"
        minion = f"master: 127.0.0.1\nmaster_port: {answer}\nid: n1\n"
        self.folder.mkdir(parents=True)
        (self.folder / "master").write_text(common + master, encoding="ascii")
        (self.folder / "minion").write_text(common + minion, encoding="ascii")
        try:
            for part in ("salt-master", "salt-minion"):
                self.running.append(self.start(part))
            deadline = time.monotonic() + UP_SECONDS
            while not self.ping():
                if time.monotonic() > deadline:
                    raise TimeoutError("salt: the minion does not answer")
                time.sleep(1)
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
        self.running.clear()

    def start(self, part: str) -> subprocess.Popen:
        with (self.folder / f"{part}.log").open("wb") as log:
            words = [self.programs / part, "-c", self.folder]
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ping(self) -> bool:
        """Asks the minion as a person does."""
        words = [self.programs / "salt", "-c", self.folder, "--out", "txt", "-t", "5", "n1", "test.ping"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(words, capture_output=True, text=True, timeout=ASK_SECONDS)
            return asked.returncode == 0 and "True" in asked.stdout
        return False


def installed(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the programs of a virtual environment, if Salt is there."""
    programs = folder / "bin"
    return programs if (programs / "salt-master").exists() else None
