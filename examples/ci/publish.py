#!/usr/bin/env python3
"""Publishes a signed wish of `smgr sign` and prints what came of it. Holds no key and needs no smgr.

    smgr sign --for 10m action run shop cache-clear zone=img --node n1 > wish       # where the key is
    publish.py --as ana --server nats://127.0.0.1:4222 wish                         # in the job
    publish.py --as operator --nkey ~/.local/state/smgr/keys/operator.nk wish       # at the bus of `smgr up`
    publish.py --server tls://bus:4222 --ca bus-ca.pem …                            # and of `smgr up --listen`

Nodes judge the signature, so whoever runs this can do what the wish says, once, and nothing else. The same bytes may
be sent any number of times: a node carries them out at most once and answers again with the first outcome, so a job
that was cut off simply runs this again.

The answers are not verified: that takes the public keys of the nodes, and `smgr history` has them. A bus that lies can
make this print anything; it cannot make a node do anything.

Exit codes, as of smgr where there is one: 0 as asked, 2 usage, 5 nobody listens (nothing was started), 6 refused,
7 not authorised, 15 it ran and failed, 16 nobody knows (send it again), 124 taken and still running.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import secrets
import ssl
import sys
from urllib.parse import unquote, urlsplit

try:
    import nats
except ImportError:
    nats = None

REFUSED, NOT_AUTHORISED, FAILED, UNKNOWN, RUNNING, NOBODY = 6, 7, 15, 16, 124, 5
RANK = [0, RUNNING, NOBODY, REFUSED, NOT_AUTHORISED, FAILED, UNKNOWN]
ROOT = "smgr.v1"


def unpack(data, at=0):
    """Reads one MessagePack value; returns it and where it ends."""

    def number(size, signed=False):
        return int.from_bytes(data[at + 1 : at + 1 + size], "big", signed=signed)

    def items(count, begin):
        values = []
        for _ in range(count):
            value, begin = unpack(data, begin)
            values.append(value)
        return values, begin

    def table(count, begin):
        values, end = items(2 * count, begin)
        return dict(zip(values[::2], values[1::2])), end

    def text(size, begin):
        return data[begin : begin + size].decode(), begin + size

    tag = data[at]
    if tag < 0x80:
        return tag, at + 1
    if tag < 0x90:
        return table(tag & 0x0F, at + 1)
    if tag < 0xA0:
        return items(tag & 0x0F, at + 1)
    if tag < 0xC0:
        return text(tag & 0x1F, at + 1)
    if tag >= 0xE0:
        return tag - 0x100, at + 1
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at + 1
    if tag in (0xC4, 0xC5, 0xC6):
        size = 1 << tag - 0xC4
        begin = at + 1 + size
        return data[begin : begin + number(size)], begin + number(size)
    if 0xCC <= tag <= 0xD3:
        size = 1 << (tag & 3)
        return number(size, signed=tag >= 0xD0), at + 1 + size
    if tag in (0xD9, 0xDA, 0xDB):
        size = 1 << tag - 0xD9
        return text(number(size), at + 1 + size)
    if tag in (0xDC, 0xDD):
        size = 2 << tag - 0xDC
        return items(number(size), at + 1 + size)
    if tag in (0xDE, 0xDF):
        size = 2 << tag - 0xDE
        return table(number(size), at + 1 + size)
    raise ValueError(f"byte {tag:#x} begins nothing that smgr writes")


def payload_of(envelope):
    """Returns what is inside an envelope: [version, type, payload, signatures, chain]."""
    (_, kind, payload, *_), end = unpack(envelope)
    if end != len(envelope):
        raise ValueError("there is something behind the envelope")
    return kind, unpack(payload)[0]


class NKey:
    """The key of a user of NATS, as `smgr up` makes one: Ed25519 by RFC 8032, slow and enough for one nonce."""

    P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
    D = -121665 * pow(121666, -1, P) % P

    def __init__(self, path):
        text = open(path).read().strip()
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
        self.kind, self.seed = (raw[0] & 7) << 5 | raw[1] >> 3, raw[2:34]
        y = 4 * pow(5, -1, self.P) % self.P
        x = pow((y * y - 1) * pow(self.D * y * y + 1, -1, self.P), (self.P + 3) // 8, self.P)
        if (x * x * (self.D * y * y + 1) - y * y + 1) % self.P:
            x = x * pow(2, (self.P - 1) // 4, self.P) % self.P
        x = self.P - x if x & 1 else x
        self.base = (x, y, 1, x * y % self.P)
        if len(raw) != 36 or raw[34:] != self.checksum(raw[:34]):
            raise ValueError(f"{path} holds no seed of an NKey")

    @staticmethod
    def checksum(data):
        crc = 0
        for byte in data:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        return crc.to_bytes(2, "little")

    def times(self, number):
        sum, double = (0, 1, 1, 0), self.base
        while number:
            sum = self.plus(sum, double) if number & 1 else sum
            double, number = self.plus(double, double), number >> 1
        inverse = pow(sum[2], -1, self.P)
        x, y = sum[0] * inverse % self.P, sum[1] * inverse % self.P
        return (y | (x & 1) << 255).to_bytes(32, "little")

    def plus(self, one, other):
        a = (one[1] - one[0]) * (other[1] - other[0])
        b = (one[1] + one[0]) * (other[1] + other[0])
        c, d = 2 * one[3] * other[3] * self.D, 2 * one[2] * other[2]
        e, f, g, h = b - a, d - c, d + c, b + a
        return e * f % self.P, g * h % self.P, f * g % self.P, e * h % self.P

    def words(self, nonce):
        """Returns what CONNECT says of the key."""

        def number(*parts):
            return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")

        whole = hashlib.sha512(self.seed).digest()
        secret = int.from_bytes(whole[:32], "little") & (1 << 254) - 8 | 1 << 254
        public = self.times(secret)
        once = number(whole[32:], nonce) % self.L
        point = self.times(once)
        proof = (once + number(point, public, nonce) * secret) % self.L
        named = bytes([self.kind]) + public
        name = base64.b32encode(named + self.checksum(named)).decode().rstrip("=")
        signature = base64.urlsafe_b64encode(point + proof.to_bytes(32, "little"))
        return {"nkey": name, "sig": signature.decode().rstrip("=")}


class Plain:
    """The few words of the NATS protocol that this needs, for where no client library is installed."""

    @classmethod
    async def connect(cls, server, tls, key=None):
        self, url = cls(), urlsplit(server)
        if url.scheme not in ("nats", "tls"):
            raise OSError("without nats-py only nats:// and tls://[USER:PASSWORD@]HOST:PORT are spoken")
        self.reader, self.writer = await asyncio.open_connection(url.hostname, url.port or 4222, ssl=tls)
        info = json.loads((await self.reader.readline()).removeprefix(b"INFO "))
        words = {"verbose": False, "headers": True, "no_responders": True}
        if url.username:
            words |= {"user": unquote(url.username), "pass": unquote(url.password or "")}
        if key:
            words |= key.words(info["nonce"].encode())
        self.writer.write(f"CONNECT {json.dumps(words)}\r\n".encode())
        return self

    async def subscribe(self, subject, took):
        self.writer.write(f"SUB {subject} 1\r\n".encode())
        self.task = asyncio.create_task(self.listen(took))

    async def publish(self, subject, data, reply):
        self.writer.write(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def listen(self, took):
        while line := await self.reader.readline():
            verb, *words = line.decode().split()
            if verb == "PING":
                self.writer.write(b"PONG\r\n")
            elif verb in ("MSG", "HMSG"):
                whole = await self.reader.readexactly(int(words[-1]) + 2)
                head = int(words[-2]) if verb == "HMSG" else 0
                took(words[0], whole[head:-2], b" 503" in whole[:head].split(b"\r\n")[0])
            elif verb == "-ERR":
                print("nats:", *words, file=sys.stderr)


class Library:
    """The same by nats-py."""

    @classmethod
    async def connect(cls, server, tls):
        self = cls()
        how = {"tls": tls, "tls_handshake_first": True} if tls else {}
        self.nats = await nats.connect(server, connect_timeout=5, allow_reconnect=False, **how)
        return self

    async def subscribe(self, subject, took):
        async def hand_on(message):
            is_nobody = (message.headers or {}).get("Status") == "503"
            took(message.subject, message.data, is_nobody)

        await self.nats.subscribe(subject, cb=hand_on)

    async def publish(self, subject, data, reply):
        await self.nats.publish(subject, data, reply=reply)
        await self.nats.flush()


def judge(reply):
    """Returns the exit code of one answer and the words for it; None when it is none to a wish."""
    if "accepted" in reply:
        return RUNNING, f"taken: {reply['accepted']['event']}"
    if "refused" in reply:
        code, why = reply["refused"]["code"], reply["refused"]["why"]
        return NOT_AUTHORISED if code.startswith("E03") else REFUSED, f"refused: {why} [{code}]"
    outcome = reply.get("outcome", {}).get("outcome", {})
    if "done" in outcome:
        return 0, "done" if outcome["done"]["changed"] else "done: it was so already"
    if "failed" in outcome:
        return FAILED, f"failed: {outcome['failed']['why']} [{outcome['failed']['code']}]"
    if "unknown" in outcome:
        return UNKNOWN, f"unknown: {outcome['unknown']['why']}"
    return None


async def carry(wish, intent, options):
    """Sends the wish to each node that it names, or else to the controllers, and hears what they say."""
    fleet, audience = intent["fleet"], intent["audience"]
    inbox = f"_INBOX.{options.principal}.{secrets.token_hex(11)}"
    if "nodes" in audience:
        subjects = {node: f"{ROOT}.{fleet}.call.{node}" for node in audience["nodes"]}
    else:
        subjects = {"controller": f"{ROOT}.{fleet}.request.{options.principal}"}
    heard = {name: (UNKNOWN, "did not answer") for name in subjects}
    is_open, news = set(subjects), asyncio.Event()

    def took(subject, data, is_nobody):
        name = subject.rpartition(".")[2]
        if name not in heard:
            return
        if is_nobody:
            verdict = NOBODY, "nobody listens for it on this bus; nothing was started"
        else:
            try:
                kind, answer = payload_of(data)
            except (ValueError, IndexError, TypeError):
                return
            if "answer" not in kind or bytes(answer["cause"]) != bytes(intent["id"]):
                return
            verdict = judge(answer["reply"])
            if verdict is None:
                return
        # A controller only takes a rollout; how it goes on, `smgr rollout watch` tells.
        is_last = verdict[0] != RUNNING or "nodes" not in audience
        heard[name] = (0, verdict[1]) if is_last and verdict[0] == RUNNING else verdict
        if is_last:
            is_open.discard(name)
        news.set()

    async def all_heard():
        while is_open:
            await news.wait()
            news.clear()

    is_encrypted = options.server.startswith("tls://")
    # The handshake comes first, and the server proves its name before it hears a word.
    tls = ssl.create_default_context(cafile=options.ca) if is_encrypted else None
    if options.nkey:
        bus = await Plain.connect(options.server, tls, NKey(options.nkey))
    else:
        bus = await (Library if nats else Plain).connect(options.server, tls)
    await bus.subscribe(f"{inbox}.*", took)
    for name, subject in subjects.items():
        await bus.publish(subject, wish, f"{inbox}.{name}")
    try:
        await asyncio.wait_for(all_heard(), options.timeout)
    except asyncio.TimeoutError:
        pass
    return heard


def main():
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("wish", help="a file with what `smgr sign` printed, base64 or not; - is stdin")
    option("--server", default="nats://127.0.0.1:4222", help="the bus: nats:// or tls://USER:PASSWORD@HOST:PORT")
    option("--ca", metavar="FILE", help="who vouches for a bus at tls://: bus-ca.pem of its state folder [default: the system's]")
    option("--nkey", metavar="FILE", help="the seed of the bus user, where the bus knows users by NKeys")
    option("--as", dest="principal", required=True, metavar="NAME", help="who signed; only this name's inbox is answered")
    option("--timeout", type=float, default=120, metavar="SECONDS", help="how long to wait; nothing is cancelled then")
    options = parser.parse_args()
    try:
        wish = sys.stdin.buffer.read() if options.wish == "-" else open(options.wish, "rb").read()
        if wish[:1] != b"\x95":
            wish = base64.b64decode(wish, validate=False)
        kind, intent = payload_of(wish)
        if "intent" not in kind:
            raise ValueError("it is no wish")
    except (OSError, ValueError, IndexError, TypeError) as error:
        print(f"error: this is not what `smgr sign` prints: {error}", file=sys.stderr)
        return 2
    try:
        heard = asyncio.run(carry(wish, intent, options))
    except Exception as error:  # Whatever the library calls it: there is no bus.
        print(f"error: the bus cannot be reached: {error}", file=sys.stderr)
        return NOBODY
    for name, (_, words) in sorted(heard.items()):
        print(f"{name}  {words}")
    return max((exit for exit, _ in heard.values()), key=RANK.index)


if __name__ == "__main__":
    sys.exit(main())
