"""The figures of real processes: restart, startup, idle."""

import contextlib
import os
import signal
import statistics
import time

from managers import Manager, Runit, Smgr, Supervisord, lacks
from report import at_most, figure, missing, note, quantiles

RESTART_SERVICES = 100
# Longer than the pauses of every peer for services that end soon after their start.
UP_SECONDS = 12
KILL_EVERY_SECONDS = 0.06
RESTART_MAX_SECONDS = 30
STARTUP_SERVICES = 500
IDLE_SERVICES = 100
IDLE_SECONDS = 30
SETTLE_SECONDS = 15
BEAT_SECONDS = 5
SWITCHES_PER_BEAT = 4
PSS_MAX_MB = 20


@contextlib.contextmanager
def running(*managers: Manager):
    """Has the managers up with all their services, and ends them whatever happens."""
    with contextlib.ExitStack() as stack:
        for manager in managers:
            manager.up()
            stack.callback(manager.down)
        for manager in managers:
            manager.wait_started()
        yield


def kill_each(*managers: Manager, apart: bool) -> dict[str, list[float]]:
    """Kills every service once, in turn with those of the other managers; returns ms until the next one began.

    `apart` waits for each before the next is killed: a second end would wake a manager that polls.
    """
    took: dict[str, list[float]] = {manager.name: [] for manager in managers}
    due = []
    for services in zip(*(manager.services for manager in managers)):
        for manager, service in zip(managers, services):
            starts = service.starts()
            at = time.monotonic_ns()
            os.kill(starts[-1][1], signal.SIGKILL)
            due.append((manager, service, len(starts), at))
            time.sleep(KILL_EVERY_SECONDS)
            if apart:
                settle(due, took)
    settle(due, took)
    for manager, samples in took.items():
        note(f"  {manager}: {quantiles(samples, 'ms')}")
    return took


def settle(due: list, took: dict[str, list[float]]) -> None:
    """Waits until every service that was killed has begun again."""
    deadline = time.monotonic() + RESTART_MAX_SECONDS
    while due:
        manager, service, before, at = due.pop()
        while len(starts := service.starts()) == before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{manager.name}: {service.name} was not started again")
            time.sleep(0.02)
        took[manager.name].append((starts[before][0] - at) / 1e6)


def restart(site) -> None:
    peers = [peer for peer in (Runit, Supervisord) if not lacks(peer)]
    medians = {}
    for name, preload in (("restart", None), ("restart-stalled", site.slow_sync)):
        stalled = preload is not None
        smgr = site.smgr(RESTART_SERVICES, preload=preload)
        # What supervisord takes depends on no disk: its first measurement serves for both.
        others = [site.peer(peer, RESTART_SERVICES) for peer in peers if not (stalled and peer is Supervisord)]
        with running(smgr, *others):
            time.sleep(UP_SECONDS)
            # One after the other; but while the disk stalls, ends come faster than it takes them.
            took = kill_each(smgr, *others, apart=not stalled)
        site.clear()
        medians |= {manager: statistics.median(samples) for manager, samples in took.items()}
        for peer, bound in ((Runit, 1.0), (Supervisord, 0.01)):
            if peer.name in medians:
                at_most(name, medians["smgr"], "ms", peer.name, medians[peer.name], bound)
            else:
                missing(name, lacks(peer) or "")


def startup(site) -> None:
    def measure(manager: Manager) -> float:
        with contextlib.ExitStack() as stack:
            manager.up()
            stack.callback(manager.down)
            return (manager.wait_started() - manager.began_ns) / 1e6

    smgr = measure(site.smgr(STARTUP_SERVICES))
    if why := lacks(Supervisord):
        note(f"  smgr: {smgr:.0f} ms")
        return missing("startup", why)
    supervisord = measure(site.peer(Supervisord, STARTUP_SERVICES))
    site.clear()
    at_most("startup", smgr, "ms", "supervisord", supervisord, 0.25)


def switches(pids: dict[str, int]) -> dict[tuple[str, int, str], int]:
    """Returns how often each thread of the processes has given up a processor so far, for whatever reason."""
    counts = {}
    for part, pid in pids.items():
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
            name = fields["Name"].strip()
            counts[part, int(thread), name] = int(fields["voluntary_ctxt_switches"]) + int(
                fields["nonvoluntary_ctxt_switches"]
            )
    return counts


def pss_mb(pids: dict[str, int]) -> dict[str, float]:
    """Returns the proportional share of memory in MB."""
    shares = {}
    for part, pid in pids.items():
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            (line,) = [line for line in file if line.startswith("Pss:")]
        shares[part] = int(line.split()[1]) * 1024 / 1e6
    return shares


def idle(site) -> None:
    managers: list[Manager] = [site.smgr(IDLE_SERVICES)]
    if why := lacks(Supervisord):
        note(f"  {why}")
    else:
        managers.append(site.peer(Supervisord, IDLE_SERVICES))
    with running(*managers):
        time.sleep(SETTLE_SECONDS)
        before = {manager: switches(manager.parts()) for manager in managers}
        time.sleep(IDLE_SECONDS)
        after = {manager: switches(manager.parts()) for manager in managers}
        counts = {}
        for manager in managers:
            woken = {key: count - before[manager].get(key, 0) for key, count in after[manager].items()}
            counts[manager.name] = sum(woken.values())
            awake = {f"{part}/{name}": count for (part, _, name), count in woken.items() if count}
            note(f"  {manager.name}: {awake}")
        shares = {manager.name: pss_mb(manager.parts()) for manager in managers}
        note(f"  PSS in MB: { {name: {part: round(mb, 2) for part, mb in share.items()} for name, share in shares.items()} }")
    site.clear()
    allowed = IDLE_SECONDS // BEAT_SECONDS * SWITCHES_PER_BEAT
    peer = "supervisord" if "supervisord" in counts else "heartbeat"
    counts.setdefault("heartbeat", allowed)
    shares.setdefault("heartbeat", {"": PSS_MAX_MB})
    figure("idle", counts["smgr"], "switches", peer, counts[peer], allowed, counts["smgr"] <= allowed)
    smgr, other = (sum(shares[name].values()) for name in ("smgr", peer))
    figure("idle-pss", smgr, "MB", peer, other, PSS_MAX_MB, smgr <= PSS_MAX_MB)
