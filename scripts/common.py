"""What the twelve scripts share as commands. It holds no IPC, and importing it changes nothing."""

import argparse
import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial, update_wrapper


class OutputError(OSError): ...  # standard output refuses a line


def run(main: Callable[[], int]) -> None:
    for stream in ("stdin", "stdout", "stderr"):  # if closed, another file gets its number
        setattr(sys, stream, getattr(sys, stream) or open(os.devnull, "r+"))
    sys.exit(main())


def number(low: str, high: str, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    def number(text: str) -> float:  # argparse prints this name
        if kind(low) <= kind(text) <= kind(high):
            return kind(text)
        raise argparse.ArgumentTypeError(f"{text.strip()} is not from {low} to {high}")

    return number  # a type for argparse


def name(text: str, longest: int = 255) -> str:
    if text.rfind("/") == 0 and 1 <= len(text[1:].encode()) <= longest:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to {longest} bytes: /test is")


count = number("0", "1000000000000")
size = number("1", str(2**47))
seconds = number("0", "1000000000", float)
mode = number("0", "777", partial(int, base=8))
natural = number("1", "2147483647", partial(int, base=0))  # as a key, 0 is IPC_PRIVATE
semname = update_wrapper(partial(name, longest=251), name)  # a file with "sem." before it
FORM = partial(argparse.RawDescriptionHelpFormatter, width=99)  # without a width: a slow import
ctime = lru_cache(maxsize=1)(time.ctime)  # most lines have the second of the last one
SCRIPT = os.path.basename("".join(sys.argv[:1])).removesuffix(".py")
Parser = partial(argparse.ArgumentParser, prog=SCRIPT, formatter_class=FORM)


def put(text: str, timed: bool = False, end: str = "\n", to: int = 1) -> None:
    if not text.isprintable():  # a terminal obeys what is not
        text = text.translate({ord(c): repr(c)[1:-1] for c in set(text) if not c.isprintable()})
    if timed:
        second, nanosecond = divmod(time.time_ns(), 10**9)
        text = f"{ctime(second)[11:19]}.{nanosecond // 1000:06} {text}"
    rest = (text + end).encode(sys.stdout.encoding, "backslashreplace")
    fd = (sys.stdout if to == 1 else sys.stderr).fileno()  # 1 or 2, but for one that was closed
    while rest:  # print() drops the rest where Python is unbuffered (python -u)
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # somebody who shares it has made it non-blocking
            time.sleep(0.01)
        except OSError as error:
            raise OutputError(error.errno, f"{error.strerror}: not printed: {text}") from error


def complain(thing: object, error: object, cures: Mapping[str, str] = {}) -> int:
    """Print `SCRIPT: OBJECT: reason`, and a cure where there is one; return the exit status."""
    if isinstance(getattr(error, "__cause__", None), BrokenPipeError):
        return 128 + signal.SIGPIPE  # `| head -3` has had enough
    text = str(getattr(error, "strerror", None) or error) or "Not enough memory"
    text += "".join(f": {cures[words]}" for words in cures if words in text.lower())
    with contextlib.suppress(OutputError):  # nobody can read it
        put(f"{SCRIPT}: {thing}: {text}", to=2)
    return 1


def compare(thing: object, what: str, given: int | None, actual: int, form: str = "d") -> None:
    if given not in (None, actual):
        complain(thing, f"{what} {actual:{form}}, not {given:{form}}")


def stop_signals(numbers: Collection[int] = (signal.SIGINT, signal.SIGTERM)) -> set[int]:
    """Return a set into which handlers put these signals when they come, in forked children too."""
    noted: set[int] = set()
    for number in numbers:
        signal.signal(number, lambda came, frame: noted.add(came))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # the parent may have blocked them
    atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, numbers)  # or a second one kills
    return noted


def ready(line: str, to: int = 1) -> None:
    put(line, to=to)
    if address := os.environ.get("NOTIFY_SOCKET"):  # of systemd: sd_notify(3), unix(7)
        from socket import AF_UNIX, SOCK_DGRAM, socket

        with contextlib.suppress(OSError), socket(AF_UNIX, SOCK_DGRAM) as notice:  # nobody listens
            notice.settimeout(0.5)  # while too many others tell systemd something
            notice.sendto(b"READY=1", address[:1].replace("@", "\0") + address[1:])
