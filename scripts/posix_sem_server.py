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

import argparse
import os
import time

import posix_ipc

import common

CURES = {"ermission": "`ls -l /dev/shm` shows owner and mode"}


def semaphore_name(text: str) -> str:
    if text[:1] == "/" and "/" not in text[1:] and 2 <= len(os.fsencode(text)) <= 252:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to 251 bytes without one")


def identity(name: str) -> tuple[int, int] | None:
    """Return what tells this semaphore from another of the same name, or from a truncated one."""
    try:
        stat = os.stat(f"/dev/shm/sem.{name[1:]}")  # sem_overview(7)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size


def open_semaphore(args: argparse.Namespace) -> posix_ipc.Semaphore:
    os.umask(0)  # or sem_open(3) takes the umask off the mode
    mode = 0o600 if args.mode is None else args.mode
    value = 2 if args.value is None else args.value
    sem = posix_ipc.Semaphore(args.name, posix_ipc.O_CREAT, mode=mode, initial_value=value)
    stat = os.stat(f"/dev/shm/sem.{args.name[1:]}")  # sem_overview(7)
    if stat.st_uid != os.geteuid():
        raise common.failure(args.name, f"belongs to uid {stat.st_uid}, not to uid {os.geteuid()}")
    if stat.st_size == 0:  # somebody truncated it, and to look at its value would be a SIGBUS
        raise common.failure(args.name, "is not a semaphore: remove it with --clean")
    common.compare(args.name, "--mode", args.mode, stat.st_mode & 0o777, "o")
    common.compare(args.name, "--value", args.value, sem.value)
    return sem


def serve(sem: posix_ipc.Semaphore, args: argparse.Namespace) -> None:
    common.stopped(0)  # from here on a signal waits for the loop
    print(f"start semaphore server: {args.name} size: {2 if args.value is None else args.value}")
    common.ready()
    previous, due, this = None, 0.0, identity(args.name)
    while not common.stopped(min(max(due - time.monotonic(), 0.01), 1)):
        if identity(args.name) != this:  # what is unlinked lives on while it is open
            raise common.failure(args.name, "the semaphore was removed")
        if time.monotonic() >= due:
            if (value := sem.value) != previous:
                print(common.line(f"semaphore: {value}"))
            previous, due = value, time.monotonic() + args.interval
    print(f"end semaphore server: {args.name}")


def clean(name: str) -> None:
    try:
        posix_ipc.unlink_semaphore(name)
        print(f"removed {name}")
    except posix_ipc.ExistentialError:
        print(f"nothing to remove: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, value = parser.add_argument, common.integer(0, posix_ipc.SEMAPHORE_VALUE_MAX)
    add("-n", "--name", type=semaphore_name, default="/test", help="of the semaphore (%(default)s)")
    add("-i", "--interval", type=common.seconds, default=1, metavar="SECONDS", help="(%(default)s)")
    add("--value", type=value, metavar="N", help="of a new one (2)")
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new one (600)")
    add("--clean", action="store_true", help="remove the semaphore and exit")
    args = parser.parse_args()
    if not posix_ipc.SEMAPHORE_VALUE_SUPPORTED:
        raise common.failure(args.name, "this system does not tell the value of a semaphore")
    try:
        clean(args.name) if args.clean else serve(open_semaphore(args), args)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    main()
