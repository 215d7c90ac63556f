"""Prints figures, one line each, in the one form that tables are made from."""

import statistics
import sys


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def figure(name: str, smgr: float, unit: str, other: str, measured: float, bound: float, holds: bool) -> None:
    ratio = smgr / measured if measured else float("inf")
    verdict = "pass" if holds else "short"
    print(
        f"bench {name} smgr={shown(smgr)}{unit} {other}={shown(measured)}{unit} "
        f"ratio={ratio:.3g} bound={bound:g} {verdict}",
        flush=True,
    )


def at_most(name: str, smgr: float, unit: str, other: str, measured: float, bound: float) -> None:
    """A figure of which smgr has to be at most `bound` times the other."""
    figure(name, smgr, unit, other, measured, bound, smgr <= bound * measured)


def at_least(name: str, smgr: float, unit: str, other: str, measured: float, bound: float) -> None:
    """A figure of which smgr has to be at least `bound` times the other."""
    figure(name, smgr, unit, other, measured, bound, smgr >= bound * measured)


def missing(name: str, what: str) -> None:
    print(f"bench {name} not measured: {what}", flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def quantiles(samples: list[float], unit: str) -> str:
    ordered = sorted(samples)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return (
        f"n={len(ordered)} min={ordered[0]:.3g} p50={statistics.median(ordered):.3g} "
        f"p90={at(0.9):.3g} max={ordered[-1]:.3g} {unit}"
    )
