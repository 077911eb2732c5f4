"""POSIX semaphore, the client: takes one, gives one back, or holds one while a command runs.

    posix_sem_client.py                     takes one, or fails if there is none
    posix_sem_client.py -w                  waits for one; -t 5 waits 5 seconds at the most
    posix_sem_client.py -r                  gives one back
    posix_sem_client.py -w -- make -j2      holds one while the command runs, and exits as it does

Shows sem_open(3), sem_timedwait(3), sem_post(3). What SIGKILL ends gives nothing back: -r does.
Read sem_overview(7), then posix_sem_server.py; sysv_sem_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///

import os
import time
from collections.abc import Sized

import posix_ipc

# --- the semaphore: these functions work in any program


def open_semaphore(name: str, mode: int = 0o600, value: int = 2) -> posix_ipc.Semaphore:
    """Make the semaphore, or open the one that is there. Mode and value are a new one's. The
    umask, which is that of all threads, is another one for a moment."""
    umask = os.umask(0o777 & ~mode)  # sem_open(3) takes it off the mode
    try:
        return posix_ipc.Semaphore(name, posix_ipc.O_CREAT, mode, value)
    finally:
        os.umask(umask)


def removed(semaphore: posix_ipc.Semaphore) -> bool:
    """Return whether its file was removed, replaced or truncated; it lives on while it is open.
    sem_open(3) maps the file and closes it, so look for it among the mappings (proc(5))."""
    path = f"/dev/shm/sem.{semaphore.name[1:]}"  # sem_overview(7)
    if not os.path.exists(path):
        path = f"/dev/shm{semaphore.name}"  # where the musl C library has it
    try:
        file = os.stat(path)
    except FileNotFoundError:
        return True
    with open("/proc/self/maps") as maps:  # a sem_t has 32 bytes, or 16
        return file.st_size not in (16, 32) or f" {file.st_ino} " not in maps.read()


def acquire(semaphore: posix_ipc.Semaphore, timeout: float | None = None, stop: Sized = ()) -> None:
    """Take one; while there is none, wait that many seconds (None: for ever). In any thread.

    Raises posix_ipc.BusyError when there is none in time, InterruptedError when `stop` has
    something in it, and posix_ipc.ExistentialError when the semaphore was removed.
    """
    end = time.monotonic() + (1e9 if timeout is None else timeout)  # 1e9: thirty years
    while not stop:
        if removed(semaphore):
            raise posix_ipc.ExistentialError("the semaphore was removed")
        left = max(end - time.monotonic(), 0)
        try:
            semaphore.acquire(min(left, 0.9))  # then look: neither a removal nor `stop` ends it
            return
        except posix_ipc.BusyError:
            if left <= 0.9:
                raise
        except posix_ipc.SignalError:
            pass  # a handler has run
    raise InterruptedError("stopped while waiting")


# --- the command line

import argparse
import contextlib
import functools
import signal
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # where common.py is, for `python -P` too
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import common

CURES = {"ermission": "`ls -l /dev/shm` shows owner and mode"}
STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


def hold(command: list[str], heeded: set[int], mask: set[int]) -> int:
    """Run the command, pass signals on to it, and return its exit status as a shell shows it."""
    to_default = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and execve(2) keeps that
    try:
        pid = os.posix_spawnp(
            command[0], command, os.environ, setsigmask=mask, setsigdef=to_default
        )
    except OSError as error:
        return common.complain(command[0], error)
    while True:
        info = signal.sigwaitinfo(heeded | {signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code: int = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif info.si_code <= 0:  # from a process; what a terminal sends, the command has got too
            with contextlib.suppress(PermissionError):  # the command has changed its user
                os.kill(pid, info.si_signo)


def misplaced(word: str) -> str:
    raise argparse.ArgumentTypeError(f"put -- before a command: -- {word}")


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, None, __doc__, formatter_class=common.FORM)
    parser.usage = "%(prog)s [OPTION ...] [-- COMMAND ...]"
    add = parser.add_argument
    how_long = parser.add_mutually_exclusive_group().add_argument
    value = common.number("0", str(posix_ipc.SEMAPHORE_VALUE_MAX))
    name = functools.partial(common.name, longest=251)
    add("-n", "--name", type=name, default="/test", help="name of the semaphore (default: /test)")
    add("-r", "--release", action="store_true", help="give one back (default: take one)")
    limit = "wait for one at most so long (default: 0)"
    how_long("-t", "--timeout", type=common.seconds, default=0, metavar="SECONDS", help=limit)
    how_long("-w", "--wait", dest="timeout", action="store_const", const=None, help="for ever")
    add("--value", type=value, metavar="N", help="value of a new semaphore (default: 2)")
    add("words", nargs="*", type=misplaced, help=argparse.SUPPRESS, metavar="COMMAND")
    words = sys.argv[1:]
    command: list[str] = []
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
        if not command:
            parser.error("a command must follow --")
    args = parser.parse_args(words)
    if args.release and command:
        parser.error("-r takes no command")
    if not posix_ipc.SEMAPHORE_VALUE_SUPPORTED:
        return common.complain(args.name, "this system does not tell the value of a semaphore")
    mask: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    heeded: set[int] = {number for number in STOP if signal.getsignal(number) != signal.SIG_IGN}
    stop: set[int] = set()
    try:
        if args.release:
            semaphore = posix_ipc.Semaphore(args.name)
        else:
            semaphore = open_semaphore(args.name, value=2 if args.value is None else args.value)
        if removed(semaphore):
            raise ValueError("is not a semaphore: posix_sem_server.py --clean removes it")
        if args.value not in (None, semaphore.value):
            common.complain(args.name, f"--value is now {semaphore.value}, not {args.value}")
        if args.release:
            semaphore.release()
            common.put(f"semaphore: {semaphore.value}")
            return 0
        stop = common.stop_signals(heeded)
        acquire(semaphore, args.timeout, stop)
        kept = False
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide the status
            signal.pthread_sigmask(signal.SIG_BLOCK, heeded | {signal.SIGCHLD})
            if stop or heeded & signal.sigpending():
                raise InterruptedError
            if command:
                return hold(command, heeded, mask)
            common.put(f"semaphore: {semaphore.value}")
            kept = True
        finally:
            if not kept and not removed(semaphore):
                semaphore.release()
    except InterruptedError:
        return 128 + min(stop | heeded & signal.sigpending())
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
