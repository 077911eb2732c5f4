"""System V semaphore, the client: takes one, gives one back, or holds one while a command runs.

    sysv_sem_client.py                      takes one, or fails if there is none; --by 2 takes two
    sysv_sem_client.py -w                   waits for one; -t 5 waits 5 seconds at the most
    sysv_sem_client.py -r                   gives one back
    sysv_sem_client.py -w --zero            waits until all are taken
    sysv_sem_client.py -w -- make -j2       holds one while the command runs, and exits as it does

Shows semget(2), semop(2) and SEM_UNDO, by which the kernel gives back what a process that died had
taken, even by SIGKILL: the client becomes its command, which is then that process.
Read sysvipc(7), then sysv_sem_server.py; posix_sem_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///

import contextlib
import os
import time

import sysv_ipc

# --- the semaphore: these functions work in any program


def open_semaphore(key: int, mode: int = 0o600, value: int = 2) -> sysv_ipc.Semaphore:
    """Make the semaphore, or open the one that is there. Mode and value are a new one's.

    Raises TimeoutError for one whose creator died before it had its value (W. Richard Stevens,
    UNIX Network Programming 2, section 11.2; TLPI, section 47.5).
    """
    while True:
        with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
            new = sysv_ipc.Semaphore(key, sysv_ipc.IPC_CREX, mode | 0o600)
            if value:
                new.release(delta=value)  # one semop(2) sets both the value and o_time
            else:
                new.Z()
            new.mode = mode
        with contextlib.suppress(sysv_ipc.ExistentialError):  # somebody has just removed it
            semaphore = sysv_ipc.Semaphore(key)
            for _ in range(300):
                if semaphore.o_time:  # its creator is done
                    return semaphore
                time.sleep(0.01)
            raise TimeoutError("never got its value: did its creator die? `ipcrm -S` removes it")


def acquire(semaphore: sysv_ipc.Semaphore, timeout: float | None = None, by: int = 1) -> None:
    """Take that many (0: wait until there is none); wait so many seconds (None: for ever).

    Raises sysv_ipc.BusyError when it cannot be had in time, and sysv_ipc.ExistentialError when the
    semaphore was removed. Works in any thread.
    """
    # semop(2) has no time limit, and the wheels of the package have no semtimedop(2): ask again.
    end = time.monotonic() + (timeout or 0)
    semaphore.block = timeout is None  # or else IPC_NOWAIT
    while True:
        try:
            if by:
                semaphore.acquire(delta=by)
            else:
                semaphore.Z()
            return
        except sysv_ipc.BusyError:
            if time.monotonic() >= end:
                raise sysv_ipc.BusyError("Semaphore is busy") from None
            time.sleep(0.01)
        except sysv_ipc.Error as error:
            if type(error) is not sysv_ipc.Error:  # that is EINTR: Ctrl-Z and fg (signal(7))
                raise


# --- the command line

import argparse
import signal
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # where common.py is, for `python -P` too
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import common

CURES = {
    "ermi": "`ipcs -s` shows owner and mode",
    "No space left": "in `sysctl kernel.sem`, or where the output goes (`df`)",
    "SEMVMX": "which is 32767",
}


def misplaced(word: str) -> str:
    raise argparse.ArgumentTypeError(f"put -- before a command: -- {word}")


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, None, __doc__, formatter_class=common.FORM)
    parser.usage = "%(prog)s [OPTION ...] [-- COMMAND ...]"
    add = parser.add_argument
    how_long = parser.add_mutually_exclusive_group().add_argument
    value = common.number("0", str(sysv_ipc.SEMAPHORE_VALUE_MAX))
    add("-k", "--key", type=common.key, default=200, help="key of the semaphore (default: 200)")
    add("-r", "--release", action="store_true", help="give one back (default: take one)")
    add("--zero", action="store_true", help="take none, but wait until the value is zero")
    add("--by", type=common.number("1", "32767"), default=1, metavar="N", help="so many (1)")
    add("--undo", action="store_true", help="let the kernel undo it at the exit (SEM_UNDO)")
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
    if args.release + args.zero + bool(command) > 1:
        parser.error("only one of -r, --zero and a command")
    try:
        if args.release:
            semaphore = sysv_ipc.Semaphore(args.key)
        else:
            semaphore = open_semaphore(args.key, value=2 if args.value is None else args.value)
        if args.value not in (None, semaphore.value):
            common.complain(args.key, f"--value is now {semaphore.value}, not {args.value}")
        semaphore.undo = args.undo or bool(command)
        if args.release:
            semaphore.release(delta=args.by)
        else:
            acquire(semaphore, args.timeout, 0 if args.zero else args.by)
        if command:
            # Python ignores these two, and what is ignored stays so after execve(2).
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            try:
                os.execvp(command[0], command)
            except OSError as error:
                return common.complain(command[0], error)
        try:
            common.put(f"semaphore: {semaphore.value}")
        except common.OutputError:
            if not args.release and not args.zero:
                semaphore.release(delta=args.by)  # nobody knows that it was taken
            raise
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.key, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
