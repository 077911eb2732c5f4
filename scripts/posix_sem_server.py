"""POSIX semaphore, the server: prints the value of the semaphore whenever it changes.

    posix_sem_server.py             in one terminal (Ctrl-C ends it), and in another
    posix_sem_client.py             which takes one; posix_sem_client.py -r gives one back
    posix_sem_server.py --clean     removes the semaphore

Shows sem_open(3), sem_getvalue(3), sem_unlink(3), and how to see that a semaphore was removed.
Read sem_overview(7), then posix_sem_client.py; sysv_sem_server.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator, Sized

import posix_ipc

# --- the semaphore: these functions work in any program
PATH = "/dev/shm/sem." if hasattr(os, "RTLD_DEEPBIND") else "/dev/shm/"  # GNU C library, or musl


def open_semaphore(name: str, mode: int = 0o600, value: int = 2) -> posix_ipc.Semaphore:
    """Make the semaphore, or open the one that is there. Mode and value are a new one's. Raises
    PermissionError, posix_ipc.PermissionsError: another user's; ValueError: a bad value or file."""
    os.stat("/proc/self/maps")  # what check() reads is there
    for _ in range(1000):  # open it, or make it: again, when it is made or removed in between
        with contextlib.suppress(posix_ipc.ExistentialError, FileNotFoundError):  # there is none
            own = (there := os.lstat(PATH + name.lstrip("/"))).st_uid == os.geteuid()
            if not own and os.access(PATH + name.lstrip("/"), os.R_OK, effective_ids=True):
                raise PermissionError(f"belongs to uid {there.st_uid}, not to uid {os.geteuid()}")
            if own and there.st_size not in (16, 32):  # of a sem_t; in a shorter file, a SIGBUS
                raise ValueError("is not a semaphore: posix_sem_server.py --clean removes it")
            semaphore = posix_ipc.Semaphore(name)
            with contextlib.ExitStack() as failed:
                failed.callback(semaphore.close)
                if own and check(semaphore) == (there.st_ino, there.st_dev):  # the same one still
                    failed.pop_all()  # nothing failed: it stays open
                    return semaphore
        if not 0 <= value <= posix_ipc.SEMAPHORE_VALUE_MAX:  # sem_open(3) would get its lowest bits
            raise ValueError(f"the value {value} is not from 0 to {posix_ipc.SEMAPHORE_VALUE_MAX}")
        new = os.urandom(16).hex()  # its name until it has its mode: sem_open(3) minds the umask
        with contextlib.suppress(FileExistsError), contextlib.ExitStack() as done:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            done.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a handler may raise
            posix_ipc.Semaphore(new, posix_ipc.O_CREX, mode, value).close()  # else it stays mapped
            done.callback(posix_ipc.unlink_semaphore, new)
            os.chmod(PATH + new, mode)
            os.link(PATH + new, PATH + name.lstrip("/"))  # unless somebody has made one meanwhile
    raise posix_ipc.ExistentialError("the semaphore was removed each time")


def check(semaphore: posix_ipc.Semaphore, own: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return inode and device of its file; posix_ipc.ExistentialError: removed, or not `own`."""
    with open("/proc/self/maps", "rb") as maps, contextlib.suppress(FileNotFoundError):
        st = os.lstat(PATH + semaphore.name.lstrip("/"))
        mapped = b"%d" % st.st_ino in [line.split()[4] for line in maps]  # by sem_open(3): proc(5)
        if mapped and st.st_size in (16, 32) and own in ((), st[1:3]):
            return st[1:3]  # st_ino and st_dev
    raise posix_ipc.ExistentialError("the semaphore was removed, or its file truncated")


def values(semaphore: posix_ipc.Semaphore, stop: Sized, interval: float = 1) -> Iterator[int]:
    """Yield the value, and again when it has changed, until `stop` has something in it.

    It looks every `interval` seconds. Raises posix_ipc.ExistentialError when the semaphore was
    removed. Works in any thread.
    """
    usleep = ctypes.CDLL(None).usleep  # a signal ends it, while time.sleep goes on (PEP 475)
    previous = None
    due = time.monotonic()
    own = check(semaphore)  # this program may open its successor, too
    while not stop:  # right before the wait, which a signal that came earlier does not end
        usleep(int(max(0, min(due - time.monotonic(), 1)) * 1e6))
        check(semaphore, own)
        if time.monotonic() >= due:
            value = semaphore.value
            if value != previous:
                yield value
            previous = value
            due = time.monotonic() + max(interval, 0.01)


# --- the command line
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"permi": "`ls -l /dev/shm`", "no sem": "is /dev/shm there?", "no sp": "`df`, and `df -i`"}
CURES["no such file"] = "it was removed, or there is no /proc"


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    value = common.number("0", str(posix_ipc.SEMAPHORE_VALUE_MAX))
    add("-n", "--name", type=common.semname, default="/test", help="use this name (default: /test)")
    add("-i", "--interval", type=common.seconds, default=1, help="pause in seconds (default: 1)")
    add("--value", type=value, metavar="N", help="value of a new semaphore (default: 2)")
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new semaphore (default: 600)")
    add("--clean", action="store_true", help="remove the semaphore and exit")
    args = parser.parse_args()
    if not posix_ipc.SEMAPHORE_VALUE_SUPPORTED:
        return common.complain(args.name, "this system does not tell the value of a semaphore")
    mode = 0o600 if args.mode is None else args.mode
    try:
        if args.clean:
            done = "nothing to remove:"
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore(args.name)
                done = "removed"
            common.put(f"{done} {args.name}")
            return 0
        stop = common.stop_signals()  # before a signal can part making and mode
        semaphore = open_semaphore(args.name, mode, 2 if args.value is None else args.value)
        there = os.stat(PATH + args.name[1:]).st_mode & 0o777
        common.compare(args.name, "--mode is", args.mode, there, "o")
        common.compare(args.name, "--value is now", args.value, semaphore.value)
        common.ready(f"start semaphore server: {args.name} size: {semaphore.value}")
        for changed in values(semaphore, stop, args.interval):
            common.put(f"semaphore: {changed}", timed=True)
        common.put(f"end semaphore server: {args.name}")
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
