"""What the twelve scripts share, and no IPC: options, lines, errors, signals. Copy it with them."""

import argparse
import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

SCRIPT = os.path.basename(sys.argv[0]).removesuffix(".py")
STOP = {signal.SIGINT, signal.SIGTERM}
clock = lru_cache(1)(lambda now: time.strftime("%H:%M:%S", time.localtime(now)))  # once a second
raw = partial(argparse.RawDescriptionHelpFormatter, width=99)  # None would import shutil
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a script as it ends cat(1): no traceback
sys.stdin, sys.stdout = sys.stdin or open(os.devnull), sys.stdout or open(os.devnull, "w")  # `<&-`
sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def integer(low: int, high: int, base: int = 10) -> Callable[[str], int]:
    """Return a type for argparse: a number from low to high in that base (0: 10, 0x10, 0o10)."""

    def number(text: str) -> int:
        if low <= (value := int(text, base)) <= high:
            return value
        form = "o" if base == 8 else "d"
        raise argparse.ArgumentTypeError(f"{text} is not from {low:{form}} to {high:{form}}")

    return number


def seconds(text: str) -> float:
    if 0 <= float(text) <= 1e9:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1000000000")


def line(text: str) -> str:
    now, fraction = divmod(time.time_ns(), 10**9)
    return f"{clock(now)}.{fraction // 1000:06} {text}"


def compare(thing: object, what: str, given: int | None, actual: int, form: str = "d") -> None:
    if given not in (None, actual):
        print(f"{SCRIPT}: {thing}: {what} is {actual:{form}}, not {given:{form}}", file=sys.stderr)


def failure(thing: object, error: object, cures: Mapping[str, str] = {}) -> SystemExit:
    """Return the SystemExit with status 1 that prints `SCRIPT: OBJECT: reason`, and the cure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the exit tries again what stdout refused
    if isinstance(error, BrokenPipeError):  # `| head -3` has had enough
        return SystemExit(128 + signal.SIGPIPE)
    reason = str(getattr(error, "strerror", None) or error)
    cure = [cures[key] for key in cures if key in reason]
    return SystemExit(": ".join([SCRIPT, str(thing), reason, *cure]))


def note_signals() -> set[int]:
    """Return a set in which handlers note SIGINT, SIGTERM and, every 0.9 seconds, SIGALRM."""
    noted: set[int] = set()
    for number in (*STOP, signal.SIGALRM):  # a handler that raised could lose a received message
        signal.signal(number, lambda number, frame: noted.add(number))
        atexit.register(signal.signal, number, signal.SIG_IGN)  # not the default, on the way out
    signal.setitimer(signal.ITIMER_REAL, 0.9, 0.9)  # ends a wait that a signal came just before
    return noted


def stopped(timeout: float) -> bool:
    """Wait that many seconds for SIGINT or SIGTERM, which stay blocked between the calls."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    return signal.sigtimedwait(STOP, timeout) is not None


def ready() -> None:
    """Tell systemd, where it asks, that the service has started (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        from socket import AF_UNIX, SOCK_DGRAM, socket

        socket(AF_UNIX, SOCK_DGRAM).sendto(b"READY=1", address)
