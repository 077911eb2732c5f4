"""POSIX semaphore, the client: takes one, gives one back, or holds one while a command runs.

    posix_sem_client.py -w -- make -j2      holds one while the command runs, and exits as it does

Shows sem_open(3), sem_timedwait(3), sem_post(3). Killed, it gives nothing back: -r does.
Read sem_overview(7), then posix_sem_server.py; sysv_sem_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import os
import signal
import time
from collections.abc import Sized

import posix_ipc

# --- the semaphore: these functions work in any program
PATH = "/dev/shm/sem." if hasattr(os, "RTLD_DEEPBIND") else "/dev/shm/"  # GNU C library, or musl


def open_semaphore(name: str, mode: int = 0o600, value: int = 2) -> posix_ipc.Semaphore:
    """Make or open one; mode and value are a new one's. ValueError, posix_ipc.PermissionsError."""
    while True:  # open it, or make it: again, when it is made or removed in between
        with contextlib.suppress(posix_ipc.ExistentialError):  # there is none
            return posix_ipc.Semaphore(name)
        new = os.urandom(16).hex()  # its name until it has its mode: sem_open(3) minds the umask
        with contextlib.suppress(FileExistsError), contextlib.ExitStack() as done:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            done.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a handler may raise
            posix_ipc.Semaphore(new, posix_ipc.O_CREX, mode, min(value, 2**31)).close()  # or wraps
            done.callback(posix_ipc.unlink_semaphore, new)
            os.chmod(PATH + new, mode)
            os.link(PATH + new, PATH + name.lstrip("/"))  # unless somebody has made one meanwhile


def check(semaphore: posix_ipc.Semaphore, own: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return inode and device of its file; posix_ipc.ExistentialError: removed, or not `own`."""
    with open("/proc/self/maps", "rb") as maps, contextlib.suppress(FileNotFoundError):
        st = os.lstat(PATH + semaphore.name.lstrip("/"))
        mapped = b"%d" % st.st_ino in [line.split()[4] for line in maps]  # by sem_open(3): proc(5)
        if mapped and st.st_size in (16, 32) and own in ((), st[1:3]):
            return st[1:3]  # st_ino and st_dev
    raise posix_ipc.ExistentialError("the semaphore was removed, or its file truncated")


def acquire(semaphore: posix_ipc.Semaphore, timeout: float | None = None, stop: Sized = ()) -> None:
    """Take one, in any thread, within so many seconds (None: for ever). Raises posix_ipc.BusyError,
    posix_ipc.ExistentialError: removed, InterruptedError: stop. A handler must not raise."""
    end = time.monotonic() + (1e9 if timeout is None else timeout)  # 1e9: thirty years
    own = check(semaphore)  # this program may open its successor, too
    while not stop:
        with contextlib.suppress(posix_ipc.BusyError, posix_ipc.SignalError):  # a handler has run
            semaphore.acquire(max(0, min(end - time.monotonic(), 0.9)))  # a removal wakes nobody
            return
        if time.monotonic() >= end and not stop:
            raise posix_ipc.BusyError("Semaphore is busy")
        check(semaphore, own)
    raise InterruptedError("stopped")


# --- the command line
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"permission": "`ls -l /dev/shm` shows owner and mode", "no semaphore": "`ls /dev/shm`"}


def hold(command: list[str], heard: set[int], stop: set[int]) -> int:  # its exit status
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide the status
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard | {signal.SIGCHLD})
    if stop or heard & signal.sigpending():
        raise InterruptedError("stopped")
    default = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and execve(2) keeps that
    pid = os.posix_spawnp(command[0], command, os.environ, setsigmask=mask, setsigdef=default)
    while not (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)):
        info = signal.sigwaitinfo(heard | {signal.SIGCHLD})  # si_code > 0: the kernel has sent it
        apart = info.si_signo == signal.SIGHUP or os.getpgid(pid) != os.getpgrp()
        if info.si_signo in heard and (info.si_code <= 0 or apart):  # else its group has got it
            with contextlib.suppress(PermissionError):  # it has changed its user
                os.kill(pid, info.si_signo)
    return ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    wait = parser.add_mutually_exclusive_group().add_argument
    add("-n", "--name", type=common.semname, default="/test", help="use this name (default: /test)")
    add("-r", "--release", action="store_true", help="give one back (default: take one)")
    wait("-t", "--timeout", type=common.seconds, default=0, help="seconds to wait (default: 0)")
    wait("-w", "--wait", dest="timeout", action="store_const", const=None, help="wait for ever")
    add("--value", type=common.number("0", "2147483647"), help="of a new semaphore (default: 2)")
    words = add("command", nargs="*", metavar="-- COMMAND", help="hold one while it runs")
    words.type = lambda word: parser.error(f"put -- before the command: -- {repr(word)[1:-1]}")
    command = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    args = parser.parse_args(sys.argv[1 : len(sys.argv) - len(command)])
    if ("--" in sys.argv and not command) or (args.release and command):
        parser.error("-- wants a COMMAND, and only one of -r and a COMMAND goes")
    heard = {n for n in (1, 2, 3, 15) if signal.getsignal(n) != signal.SIG_IGN}  # HUP INT QUIT TERM
    stop = common.stop_signals(heard if command else [])  # else the default ends it at once
    try:
        if args.release:
            semaphore = posix_ipc.Semaphore(args.name)
            check(semaphore)
            semaphore.release()
        else:
            semaphore = open_semaphore(args.name, value=2 if args.value is None else args.value)
            check(semaphore)
            common.compare(args.name, "--value is now", args.value, semaphore.value)
            acquire(semaphore, args.timeout, stop)
        if command:
            CURES.clear()  # what fails now is the command
            try:
                return hold(command, heard, stop)
            finally:
                with contextlib.suppress(OSError):  # it was removed
                    if os.stat(PATH + args.name[1:]).st_size in (16, 32):  # else a SIGBUS
                        semaphore.release()
        CURES[""] = "it was done all the same"  # what fails now is the output
        common.put(f"semaphore: {semaphore.value}")
    except InterruptedError:
        return 128 + min(stop or signal.sigpending())
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(getattr(error, "filename", None) or args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
