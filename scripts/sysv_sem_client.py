"""System V semaphore, the client: takes one, gives one back, or holds one while a command runs.

    sysv_sem_client.py -w -- make -j2       holds one while the command runs, and exits as it does

Shows semget(2), semop(2) and SEM_UNDO: whatever ends the command, the kernel gives back for it.
Read sysvipc(7), then sysv_sem_server.py; posix_sem_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import ctypes
import errno
import os
import struct
import time
from collections.abc import Sized

import sysv_ipc

# --- the semaphore: these functions work in any program
LIBC = ctypes.CDLL(None, use_errno=True)


def open_semaphore(key: int, mode: int = 0o600, value: int = 2) -> sysv_ipc.Semaphore:
    """Make the semaphore, or open what is there; mode and value are a new one's. ValueError,
    sysv_ipc.PermissionsError; TimeoutError: its creator died half-way (Stevens, UNP 2, 11.2)."""
    if not 0 <= value <= 32767:  # or it is made, and never gets it
        raise ValueError(f"the value {value} is not from 0 to 32767")
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
            semaphore = sysv_ipc.Semaphore(key)
            for _ in range(300):
                if semaphore.o_time:  # its creator is done
                    return semaphore
                time.sleep(0.01)
            raise TimeoutError(f"never got its value: did its creator die? `ipcrm -S {key}`")
    raise sysv_ipc.Error("cannot be made: `/sbin/sysctl kernel.sem` shows the limits")


def acquire(
    semaphore: sysv_ipc.Semaphore, timeout: float | None = None, stop: Sized = (), by: int = 1
) -> None:
    """Take that many, up to 32767 (0: wait until there is none), in any thread, within so many
    seconds (None: for ever). Raises sysv_ipc.BusyError, sysv_ipc.ExistentialError: removed,
    InterruptedError: stop. With semaphore.undo = True, what a killed process has is given back."""
    # In sysv_ipc, acquire(delta=by) and Z() have no time limit. semtimedop(2) has, for a sembuf:
    take = struct.pack("Hhh", 0, -by, 0x1000 if semaphore.undo else 0)  # 0x1000 is SEM_UNDO
    end = time.monotonic() + (1e9 if timeout is None else timeout)  # 1e9: thirty years
    while not stop:  # each look costs the place in the queue of semop(2), so only with a `stop`
        left = max(0, min(end - time.monotonic(), 1e9 if stop == () else 0.9))
        limit = struct.pack("ll", int(left), int(left % 1 * 1e9))  # a struct timespec
        if LIBC.semtimedop(semaphore.id, take, 1, limit) == 0:
            return
        failed = ctypes.get_errno()
        if failed in (errno.EIDRM, errno.EINVAL):  # EINVAL: it was gone before
            raise sysv_ipc.ExistentialError("the semaphore was removed")
        if failed not in (errno.EAGAIN, errno.EINTR):  # EINTR: a handler has run, or Ctrl-Z came
            raise OSError(failed, os.strerror(failed))
        if failed == errno.EAGAIN and time.monotonic() >= end and not stop:
            raise sysv_ipc.BusyError("Semaphore is busy")
    raise InterruptedError("stopped")


# --- the command line
import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

LIMITS = "`/sbin/sysctl kernel.sem` shows the limits, and SEMVMX is 32767"
CURES = {"permi": "`ipcs -s` shows owner and mode", "no space left": LIMITS, "semvmx": LIMITS}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    wait = parser.add_mutually_exclusive_group().add_argument
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("-r", "--release", action="store_true", help="give back (default: take)")
    add("--zero", action="store_true", help="take none, but wait until the value is zero")
    how_many = "how many to take or give back (default: 1)"
    add("--by", type=common.number("1", "32767"), default=1, metavar="N", help=how_many)
    add("--undo", action="store_true", help="let the kernel undo it at the exit (SEM_UNDO)")
    wait("-t", "--timeout", type=common.seconds, default=0, help="seconds to wait (default: 0)")
    wait("-w", "--wait", dest="timeout", action="store_const", const=None, help="wait for ever")
    add("--value", type=common.number("0", "32767"), help="of a new semaphore (default: 2)")
    words = add("command", nargs="*", metavar="-- COMMAND", help="hold it while it runs")
    words.type = lambda word: parser.error(f"put -- before the command: -- {repr(word)[1:-1]}")
    command = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    args = parser.parse_args(sys.argv[1 : len(sys.argv) - len(command)])
    if ("--" in sys.argv and not command) or args.release + args.zero + bool(command) > 1:
        parser.error("-- wants a COMMAND, and only one of -r, --zero and a COMMAND goes")
    thing = args.key
    try:
        if args.release:
            semaphore = sysv_ipc.Semaphore(args.key)
            if not semaphore.o_time:  # its creator is not done, and semop(2) would set it
                raise ValueError(f"has no value yet: did its creator die? `ipcrm -S {args.key}`")
        else:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:  # a signal that ended this here would leave a new semaphore without its value
                semaphore = open_semaphore(args.key, value=2 if args.value is None else args.value)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        common.compare(args.key, "--value is now", args.value, semaphore.value)
        semaphore.undo = args.undo or bool(command)
        if args.release:
            semaphore.release(delta=args.by)
        else:
            acquire(semaphore, args.timeout, by=0 if args.zero else args.by)
        CURES.clear()  # what fails now is the command, or the output
        if command:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and execve(2)
                signal.signal(number, signal.SIG_DFL)  # would leave it so
            os.execvp(thing := command[0], command)  # thing is what an error is about
        CURES.update({} if args.undo or args.zero else {"": "it was done all the same"})
        common.put(f"semaphore: {semaphore.value}")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError, AttributeError) as error:
        return common.complain(thing, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
