"""POSIX semaphore, the client: takes one, gives one back, or holds one while a command runs.

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
    """Make the semaphore, or open the one that is there; mode and value are a new one's."""
    try:
        semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode, value)
        os.chmod(file_of(name), mode)  # sem_open(3) takes the umask off the mode
    except (posix_ipc.ExistentialError, FileNotFoundError):  # it is there, or was a moment ago
        semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREAT, mode, value)
    return semaphore


def file_of(name: str) -> str:
    """Return the path of a semaphore (sem_overview(7)); the musl C library has no `sem.` in it."""
    path = f"/dev/shm/sem.{name[1:]}"
    return path if os.path.exists(path) else f"/dev/shm/{name[1:]}"


def removed(semaphore: posix_ipc.Semaphore) -> bool:
    """Return whether its file was removed, replaced or truncated; it lives on while it is open.
    sem_open(3) maps the file and closes it, so look for it among the mappings (proc(5))."""
    path = file_of(semaphore.name)
    if not os.path.exists(path):
        return True
    file = os.stat(path)
    with open("/proc/self/maps") as maps:  # a sem_t has 32 bytes, or 16
        return file.st_size not in (16, 32) or f" {file.st_ino} " not in maps.read()


def acquire(semaphore: posix_ipc.Semaphore, timeout: float | None = None, stop: Sized = ()) -> None:
    """Take one; while there is none, wait that many seconds (None: for ever). In any thread.
    Raises posix_ipc.BusyError when there is none in time, InterruptedError when `stop` has
    something in it, and posix_ipc.ExistentialError when the semaphore was removed."""
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
    raise InterruptedError("stopped")


# --- the command line

import argparse
import contextlib
import functools
import signal
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import common

CURES = {"ermission": "`ls -l /dev/shm` shows owner and mode"}
STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


def hold(command: list[str], heeded: set[int], stop: set[int]) -> int:
    """Run the command, pass signals on to it, and return its exit status as a shell shows it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide the status
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heeded | {signal.SIGCHLD})
    if stop or heeded & signal.sigpending():
        raise InterruptedError("stopped")
    default = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and execve(2) keeps that
    pid = os.posix_spawnp(command[0], command, os.environ, setsigmask=mask, setsigdef=default)
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        info = signal.sigwaitinfo(heeded | {signal.SIGCHLD})
        # What the kernel sends, as for Ctrl-C, has a code above 0: the command has got it too.
        if info.si_signo != signal.SIGCHLD and info.si_code <= 0:
            with contextlib.suppress(PermissionError):  # it has changed its user
                os.kill(pid, info.si_signo)
    code: int = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def misplaced(word: str) -> str:
    raise argparse.ArgumentTypeError(f"put -- before the command: -- {word}")


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, None, __doc__, formatter_class=common.FORM)
    add = parser.add_argument
    wait = parser.add_mutually_exclusive_group().add_argument
    name = functools.partial(common.name, longest=251)
    add("-n", "--name", type=name, default="/test", help="name of the semaphore (default: /test)")
    add("-r", "--release", action="store_true", help="give one back (default: take one)")
    wait("-t", "--timeout", type=common.seconds, default=0, help="seconds to wait (default: 0)")
    wait("-w", "--wait", dest="timeout", action="store_const", const=None, help="wait for ever")
    value = common.number("0", str(posix_ipc.SEMAPHORE_VALUE_MAX))
    add("--value", type=value, metavar="N", help="of a new semaphore (default: 2)")
    add("command", nargs="*", type=misplaced, metavar="-- COMMAND", help="hold one while it runs")
    dashes = [*sys.argv, "--"].index("--")
    args = parser.parse_args(sys.argv[1:dashes])
    command = sys.argv[dashes + 1 :]
    if dashes == len(sys.argv) - 1 or (args.release and command):
        parser.error("-- wants a COMMAND, and only one of -r and a COMMAND goes")
    heeded: set[int] = {n for n in STOP if signal.getsignal(n) != signal.SIG_IGN}
    stop = common.stop_signals(heeded)
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
        else:
            acquire(semaphore, args.timeout, stop)
        if command:
            try:
                return hold(command, heeded, stop)
            finally:
                if not removed(semaphore):
                    semaphore.release()
        common.put(f"semaphore: {semaphore.value}")
    except InterruptedError:
        return 128 + min(stop or signal.sigpending())
    except common.OutputError as error:
        return common.complain(args.name, error, {"": "the value has changed all the same"})
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(getattr(error, "filename", None) or args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
