#!/usr/bin/env python3
"""A small web shop, as an example of a service: ready by sd_notify, with a cache that can be cleared.

    GET  /page?zone=img&key=cat     a page; made slowly, then from the cache (X-Cache: miss, hit)
    GET  /status                    what the process knows of itself, as JSON
    POST /cache/clear?zone=img      forgets one zone, or all of them with zone=all
    POST /crash?code=3              ends the process at once with that exit code; ?signal=KILL by a signal

SIGHUP reads greeting.txt again, SIGTERM ends it in good order. Each start, reload and clearing is appended to
`executions.jsonl` in the folder --state, so that one can count from outside what really happened.
"""

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).resolve().parent
PAGE_SECONDS = 0.05
CACHE_ENTRIES_MAX = 10_000


def notify(state: str) -> None:
    """Tells the supervisor; without one it does nothing. A name that begins with @ is an abstract socket."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)


def say(text: str) -> None:
    print(text, flush=True)


class Shop:
    """What the process holds in memory, and its record of what it did."""

    def __init__(self, state: Path) -> None:
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.cache: dict[str, dict[str, str]] = {}
        self.counts = {"hits": 0, "misses": 0, "clears": 0, "reloads": 0}
        self.record = os.open(
            state / "executions.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self.greeting = self.read_greeting()

    @staticmethod
    def read_greeting() -> str:
        try:
            return (HERE / "greeting.txt").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return "Welcome"

    def executed(self, what: str, **more: object) -> None:
        """Appends one line in one write, so that lines of several processes do not mix."""
        line = {"what": what, "pid": os.getpid(), "unix_ms": time.time_ns() // 1_000_000, **more}
        os.write(self.record, (json.dumps(line) + "\n").encode())

    def page(self, zone: str, key: str) -> tuple[str, bool]:
        with self.lock:
            page = self.cache.get(zone, {}).get(key)
            self.counts["misses" if page is None else "hits"] += 1
        if page is not None:
            return page, True
        time.sleep(PAGE_SECONDS)  # the work that the cache is for
        page = f"{self.greeting}: {zone}/{key}\n"
        with self.lock:
            if sum(map(len, self.cache.values())) >= CACHE_ENTRIES_MAX:
                self.cache.clear()
            self.cache.setdefault(zone, {})[key] = page
        return page, False

    def clear(self, zone: str) -> int:
        with self.lock:
            zones = list(self.cache) if zone == "all" else [zone]
            forgotten = sum(len(self.cache.pop(name, {})) for name in zones)
            self.counts["clears"] += 1
        self.executed("clear", zone=zone, forgotten=forgotten)
        return forgotten

    def reload(self) -> None:
        self.greeting = self.read_greeting()
        with self.lock:
            self.counts["reloads"] += 1
        self.executed("reload")
        say(f"reloaded: {self.greeting}")

    def status(self) -> dict[str, object]:
        with self.lock:
            zones = {zone: len(pages) for zone, pages in self.cache.items()}
            return {
                "pid": os.getpid(),
                "up_seconds": round(time.monotonic() - self.started, 3),
                "cached": zones,
                **self.counts,
            }


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        path, query = self.parts()
        match path:
            case "/page":
                page, hit = self.server.shop.page(query.get("zone", "main"), query.get("key", "index"))
                self.answer(200, page, {"X-Cache": "hit" if hit else "miss"})
            case "/status":
                self.answer(200, json.dumps(self.server.shop.status()) + "\n")
            case _:
                self.answer(404, "no such page\n")

    def do_POST(self) -> None:
        path, query = self.parts()
        match path:
            case "/cache/clear":
                forgotten = self.server.shop.clear(query.get("zone", "all"))
                self.answer(200, json.dumps({"forgotten": forgotten}) + "\n")
            case "/crash":
                self.crash(query)
            case _:
                self.answer(404, "no such page\n")

    def crash(self, query: dict[str, str]) -> None:
        try:
            number = signal.Signals["SIG" + query["signal"]] if "signal" in query else None
            code = int(query.get("code", "1"))
        except (KeyError, ValueError):
            self.answer(400, "code is a number, signal a name such as KILL\n")
            return
        print("FATAL asked to crash", file=sys.stderr, flush=True)
        self.answer(202, "crashing\n")
        if number is not None:
            os.kill(os.getpid(), number)
            time.sleep(5)  # the kernel may choose another thread for it, so it can take a moment
        os._exit(code & 0xFF)

    def parts(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {name: values[-1] for name, values in parse_qs(url.query).items()}

    def answer(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        payload = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        say(f"{self.address_string()} {format % args}")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], shop: Shop) -> None:
        self.shop = shop
        super().__init__(address, Handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes one that is free")
    parser.add_argument("--state", type=Path, default=HERE, help="where executions.jsonl is kept")
    options = parser.parse_args()

    # Threads inherit the mask, so that only the loop below sees these.
    signals = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    shop = Shop(options.state)
    shop.executed("start")
    server = Server((options.host, options.port), shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"listening on http://{options.host}:{server.server_address[1]}")
    notify("READY=1\nSTATUS=serving")
    while signal.sigwait(signals) == signal.SIGHUP:
        shop.reload()
    notify("STOPPING=1")
    server.shutdown()
    say("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
