"""System V semaphore, the server: prints the value of the semaphore whenever it changes.

    sysv_sem_server.py              in one terminal (Ctrl-C ends it), and in another
    sysv_sem_client.py              which takes one; sysv_sem_client.py -r gives one back
    sysv_sem_server.py --clean      removes the semaphore

Shows semget(2), semctl(2), and how to create a semaphore that nobody sees before it has its value
(W. Richard Stevens, UNIX Network Programming 2, section 11.2; TLPI, section 47.5).
Read sysvipc(7), then sysv_sem_client.py; posix_sem_server.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import ctypes
import os
import time
from collections.abc import Iterator, Sized

import sysv_ipc

# --- the semaphore: these functions work in any program


def open_semaphore(key: int, mode: int = 0o600, value: int = 2) -> sysv_ipc.Semaphore:
    """Make the semaphore, or open the one that is there. Mode and value (to 32767) are a new one's.

    Raises PermissionError, or sysv_ipc.PermissionsError, for another user's semaphore, TimeoutError
    for one whose creator died before it had its value (W. Richard Stevens, UNIX Network Programming
    2, section 11.2), ValueError for a value that is out of range.
    """
    if not 0 <= value <= sysv_ipc.SEMAPHORE_VALUE_MAX:  # or it is made, and never gets it
        raise ValueError(f"the value {value} is not from 0 to {sysv_ipc.SEMAPHORE_VALUE_MAX}")
    for _ in range(10000):  # make it, or open it: again, when it is removed in between
        with contextlib.suppress(sysv_ipc.ExistentialError, sysv_ipc.BusyError):  # if it is there
            new = sysv_ipc.Semaphore(key, sysv_ipc.IPC_CREX, mode | 0o600)
            new.block = False  # or Z() waits for ever, when another has just added 1
            if value:
                new.release(delta=value)  # one semop(2) sets both the value and o_time
            else:
                new.Z()
            new.mode = mode
        with contextlib.suppress(sysv_ipc.ExistentialError):  # if somebody has just removed it
            semaphore = sysv_ipc.Semaphore(key, mode=0)
            if {semaphore.uid, semaphore.cuid} != {os.geteuid()}:  # cuid made it, and keeps rights
                uids = f"uid {semaphore.uid}, made by uid {semaphore.cuid}"
                raise PermissionError(f"belongs to {uids}")
            for _ in range(300):
                if semaphore.o_time:  # its creator is done
                    return semaphore
                time.sleep(0.01)
            raise TimeoutError(f"never got its value: did its creator die? `ipcrm -S {key}`")
    raise sysv_ipc.Error("cannot be made: `/sbin/sysctl kernel.sem` shows the limits")


def values(semaphore: sysv_ipc.Semaphore, stop: Sized, interval: float = 1) -> Iterator[int]:
    """Yield the value, and again when it has changed, until `stop` has something in it.

    It looks every `interval` seconds. Raises sysv_ipc.ExistentialError when the semaphore was
    removed. Works in any thread.
    """
    usleep = ctypes.CDLL(None).usleep  # a signal ends it, while time.sleep goes on (PEP 475)
    previous = None
    due = time.monotonic()
    while not stop:  # right before the wait, which a signal that came earlier does not end
        usleep(int(max(0, min(due - time.monotonic(), 1)) * 1e6))
        value = semaphore.value  # fails when the semaphore was removed
        if time.monotonic() >= due:
            if value != previous:
                yield value
            previous = value
            due = time.monotonic() + max(interval, 0.01)


# --- the command line
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {
    "permi": "`ipcs -s` shows owner and mode",
    "no space left": "in `/sbin/sysctl kernel.sem`, or where the output goes (`df`)",
}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    value = common.number("0", str(sysv_ipc.SEMAPHORE_VALUE_MAX))
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("-i", "--interval", type=common.seconds, default=1, help="pause in seconds (default: 1)")
    add("--value", type=value, metavar="N", help="value of a new semaphore (default: 2)")
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new semaphore (default: 600)")
    add("--clean", action="store_true", help="remove the semaphore and exit")
    args = parser.parse_args()
    mode = 0o600 if args.mode is None else args.mode
    try:
        if args.clean:
            done = "nothing to remove:"
            with contextlib.suppress(sysv_ipc.ExistentialError):
                sysv_ipc.Semaphore(args.key, mode=0).remove()
                done = "removed"
            common.put(f"{done} {args.key}")
            return 0
        stop = common.stop_signals()  # before a signal can part making and first value
        semaphore = open_semaphore(args.key, mode, 2 if args.value is None else args.value)
        common.compare(args.key, "--mode is", args.mode, semaphore.mode & 0o777, "o")
        common.compare(args.key, "--value is now", args.value, semaphore.value)
        common.ready(f"start semaphore server: {args.key} size: {semaphore.value}")
        for changed in values(semaphore, stop, args.interval):
            common.put(f"semaphore: {changed}", timed=True)
        common.put(f"end semaphore server: {args.key}")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.key, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
