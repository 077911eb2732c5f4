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

import argparse
import contextlib
import os
import time

import sysv_ipc

import common

CURES = {
    "ermi": "`ipcs -s` shows owner and mode",
    "No space left": "in `sysctl kernel.sem`, or where the output goes (`df`)",
}
KEY = common.integer(1, 2**31 - 1, 0)  # 0 is IPC_PRIVATE, a new object at every open


def open_semaphore(args: argparse.Namespace) -> sysv_ipc.Semaphore:
    mode = 0o600 if args.mode is None else args.mode
    value = 2 if args.value is None else args.value
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        new = sysv_ipc.Semaphore(args.key, sysv_ipc.IPC_CREX, mode=mode | 0o600)
        # One semop(2) gives it value and o_time, so that nobody sees it without its value.
        new.release(delta=value) if value else new.Z()
        new.mode = mode
    sem = sysv_ipc.Semaphore(args.key, mode=0)
    # A creator (cuid) keeps all rights, even when he has given the object away (uid).
    if others := {sem.uid, sem.cuid} - {(me := os.geteuid())}:
        raise common.failure(args.key, f"belongs to uid {min(others)}, not to uid {me}")
    end = time.monotonic() + 3
    while not sem.o_time:  # its creator is not done
        if time.monotonic() > end:
            raise common.failure(
                args.key, "never got its value: did its creator die? --clean removes it"
            )
        time.sleep(0.01)
    common.compare(args.key, "--mode", args.mode, sem.mode & 0o777, "o")
    common.compare(args.key, "--value", args.value, sem.value)
    return sem


def serve(sem: sysv_ipc.Semaphore, args: argparse.Namespace) -> None:
    common.stopped(0)  # from here on a signal waits for the loop
    print(f"start semaphore server: {args.key} size: {2 if args.value is None else args.value}")
    common.ready()
    previous, due = None, 0.0
    while not common.stopped(min(max(due - time.monotonic(), 0.01), 1)):
        value = sem.value  # fails when the semaphore was removed
        if time.monotonic() >= due:
            if value != previous:
                print(common.line(f"semaphore: {value}"))
            previous, due = value, time.monotonic() + args.interval
    print(f"end semaphore server: {args.key}")


def clean(key: int) -> None:
    try:
        sysv_ipc.Semaphore(key, mode=0).remove()
        print(f"removed {key}")
    except sysv_ipc.ExistentialError:
        print(f"nothing to remove: {key}")


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, value = parser.add_argument, common.integer(0, sysv_ipc.SEMAPHORE_VALUE_MAX)
    add("-k", "--key", type=KEY, default=200, help="of the semaphore (%(default)s)")
    add("-i", "--interval", type=common.seconds, default=1, metavar="SECONDS", help="(%(default)s)")
    add("--value", type=value, metavar="N", help="of a new one (2)")
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new one (600)")
    add("--clean", action="store_true", help="remove the semaphore and exit")
    args = parser.parse_args()
    try:
        clean(args.key) if args.clean else serve(open_semaphore(args), args)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    main()
