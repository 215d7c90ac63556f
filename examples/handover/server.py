"""A web server that can be handed over: it serves sockets that it was given, says when it is ready, and drains.

It takes `http` (and `admin`, where there is one) from LISTEN_FDS, tells NOTIFY_SOCKET that it is ready, and answers each
request with `PID VERSION`. At SIGTERM it takes no connection any more, answers those that it has taken, and ends.

In its folder, `--folder`, files say how it is to misbehave at its start: `hang` (never ready), `slow` (ready after so many
seconds), `crash` (ends with 3), `sick` (ready, and its admin page says 503).
"""

import argparse
import os
import pathlib
import selectors
import signal
import socket
import sys
import threading
import time


def given() -> dict[str, socket.socket]:
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        sys.exit("no sockets were passed: start it under a service manager")
    names = os.environ["LISTEN_FDNAMES"].split(":")
    return {name: socket.socket(fileno=3 + place) for place, name in enumerate(names)}


def notify(text: str) -> None:
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


def answer(caller: socket.socket, status: str, body: str) -> None:
    """Reads one request and answers it. A caller that is too slow is let go."""
    with caller:
        caller.settimeout(10)
        try:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (part := caller.recv(4096)):
                    return
                request += part
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            caller.sendall((head + body).encode())
        except OSError:
            pass


def admin(listener: socket.socket, folder: pathlib.Path) -> None:
    while True:
        caller, _ = listener.accept()
        answer(caller, "503 Sick" if (folder / "sick").exists() else "200 OK", "admin")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("."))
    folder = parser.parse_args().folder
    sockets = given()
    print(f"begin {os.getpid()}", flush=True)
    if "admin" in sockets:
        threading.Thread(target=admin, args=(sockets["admin"], folder), daemon=True).start()
    if (folder / "crash").exists():
        return 3
    while (folder / "hang").exists():
        time.sleep(0.1)
    if (folder / "slow").exists():
        time.sleep(float((folder / "slow").read_text(encoding="ascii")))

    # A run that serves beside this one may take a connection first: whoever comes second must not wait for the next.
    listener = sockets["http"]
    listener.setblocking(False)
    asleep, waker = socket.socketpair()
    for end in (asleep, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    stops = []
    signal.signal(signal.SIGTERM, lambda *_: stops.append(True))
    body = f"{os.getpid()} {os.environ.get('VERSION', '-')}"
    notify("READY=1")
    with selectors.DefaultSelector() as chosen:
        chosen.register(listener, selectors.EVENT_READ)
        chosen.register(asleep, selectors.EVENT_READ)
        while not stops:
            for key, _ in chosen.select():
                if key.fileobj is not listener:
                    continue
                try:
                    caller, _ = listener.accept()
                except BlockingIOError:
                    continue
                answer(caller, "200 OK", body)
    notify("STOPPING=1")
    print(f"end {os.getpid()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
