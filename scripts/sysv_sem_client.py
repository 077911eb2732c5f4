"""System V semaphore, the client: takes one, gives one back, or holds one while a command runs.

    sysv_sem_client.py                      takes one, or fails if there is none; --by 2 takes two
    sysv_sem_client.py -w                   waits for one; -t 5 waits 5 seconds at the most
    sysv_sem_client.py -r                   gives one back
    sysv_sem_client.py -w --zero            waits until all are taken
    sysv_sem_client.py -w -- make -j2       holds one while the command runs, and exits as it does

Shows semget(2), semop(2) and SEM_UNDO, by which the kernel gives back what a process that died had
taken, by SIGKILL too (and does not ask whether its command goes on).
Read sysvipc(7), then sysv_sem_server.py; posix_sem_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///

import argparse
import contextlib
import math
import os
import signal
import sys
import time

import sysv_ipc

import common

CURES = {
    "ermi": "`ipcs -s` shows owner and mode",
    "No space left": "in `sysctl kernel.sem`, or where the output goes (`df`)",
    "SEMVMX": "which is 32767",
}
KEY = common.integer(1, 2**31 - 1, 0)  # 0 is IPC_PRIVATE, a new object at every open
STOP = common.STOP | {signal.SIGHUP}  # which comes when the terminal is closed


def open_semaphore(key: int, create: bool) -> sysv_ipc.Semaphore:
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        if create:
            # One semop(2) gives it value and o_time, so that nobody sees it without its value.
            sysv_ipc.Semaphore(key, sysv_ipc.IPC_CREX, mode=0o600).release(delta=2)
    sem = sysv_ipc.Semaphore(key)
    end = time.monotonic() + 3
    while not sem.o_time:  # its creator is not done
        if time.monotonic() > end:
            raise common.failure(
                key, "never got its value: did its creator die? `ipcrm -S KEY` removes it"
            )
        time.sleep(0.01)
    return sem


def acquire(sem: sysv_ipc.Semaphore, args: argparse.Namespace, noted: set[int]) -> None:
    end = math.inf if args.timeout is None else time.monotonic() + args.timeout
    sem.block = args.timeout != 0  # IPC_NOWAIT
    while True:
        # The wheels of the package have no semtimedop(2): a signal ends the wait.
        signal.setitimer(signal.ITIMER_REAL, max(min(end - time.monotonic(), 0.9), 0.001), 0.9)
        try:
            sem.Z() if args.zero else sem.acquire(delta=args.by)
            return
        except sysv_ipc.BusyError:
            raise common.failure(args.key, "Semaphore is busy") from None
        except sysv_ipc.Error as error:
            if type(error) is not sysv_ipc.Error:  # EINTR has no class of its own
                raise
        if stop := noted & STOP:
            sys.exit(128 + min(stop))
        if time.monotonic() >= end:
            raise common.failure(args.key, "Semaphore is busy")


def hold(command: list[str], noted: set[int]) -> int:
    """Run the command, pass signals on to it, and return its exit status as a shell shows it."""
    import subprocess

    if stop := noted & STOP:
        sys.exit(128 + min(stop))
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise common.failure(command[0], error) from error

    def forward(number: int, _frame: object) -> None:
        if number != signal.SIGINT or not os.isatty(0):  # a terminal sends Ctrl-C to both of us
            process.send_signal(number)

    for number in STOP:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    for earlier in noted & STOP:  # it came while the process was started
        forward(earlier, None)
    status = process.wait()
    return status if status >= 0 else 128 - status


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, how_long = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("-k", "--key", type=KEY, default=200, help="of the semaphore (%(default)s)")
    add("-r", "--release", action="store_true", help="give one back")
    add("--zero", action="store_true", help="wait until the value is zero; take none")
    add("--by", type=common.integer(1, 32767), default=1, metavar="N", help="take or give N (1)")
    add("--undo", action="store_true", help="let the kernel undo it at the exit: SEM_UNDO")
    how_long("-t", "--timeout", type=common.seconds, default=0, metavar="SECONDS", help="(0)")
    how_long("-w", "--wait", dest="timeout", action="store_const", const=None, help="for ever")
    add("command", nargs="*", metavar="COMMAND", help="hold one while the command runs")
    args = parser.parse_args()
    if args.release + args.zero + bool(args.command) > 1:
        parser.error("only one of -r, --zero and a command")
    try:
        sem = open_semaphore(args.key, not args.release)
        sem.undo = args.undo or bool(args.command)
        if args.release:
            sem.release(delta=args.by)
        else:
            noted = common.note_signals()
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup(1) sets it
                signal.signal(signal.SIGHUP, lambda number, frame: noted.add(number))
            acquire(sem, args, noted)
        if args.command:
            try:
                sys.exit(hold(args.command, noted))
            finally:
                with contextlib.suppress(sysv_ipc.ExistentialError):  # removed while it was held
                    sem.release(delta=args.by)
        print(f"semaphore: {sem.value}")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    main()
