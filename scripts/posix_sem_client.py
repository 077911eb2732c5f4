"""POSIX semaphore, the client: takes one, gives one back, or holds one while a command runs.

    posix_sem_client.py                     takes one, or fails if there is none
    posix_sem_client.py -w                  waits for one; -t 5 waits 5 seconds at the most
    posix_sem_client.py -r                  gives one back
    posix_sem_client.py -w -- make -j2      holds one while the command runs, and exits as it does

Shows sem_open(3), sem_timedwait(3), sem_post(3). The kernel gives nothing back for a client that
is killed with SIGKILL while its command runs: -r does (sysv_sem_client.py has SEM_UNDO for that).
Read sem_overview(7), then posix_sem_server.py; sysv_sem_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///

import argparse
import os
import signal
import sys
import time

import posix_ipc

import common

CURES = {"ermission": "`ls -l /dev/shm` shows owner and mode"}
STOP = common.STOP | {signal.SIGHUP}  # which comes when the terminal is closed


def semaphore_name(text: str) -> str:
    if text[:1] == "/" and "/" not in text[1:] and 2 <= len(os.fsencode(text)) <= 252:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to 251 bytes without one")


def open_semaphore(name: str, flags: int) -> posix_ipc.Semaphore:
    umask = os.umask(0)  # or sem_open(3) takes the umask off the mode
    sem = posix_ipc.Semaphore(name, flags, mode=0o600, initial_value=2)
    os.umask(umask)
    if os.stat(f"/dev/shm/sem.{name[1:]}").st_size == 0:  # truncated: to touch it would be a SIGBUS
        raise common.failure(name, "is not a semaphore: posix_sem_server.py --clean removes it")
    return sem


def acquire(sem: posix_ipc.Semaphore, timeout: float | None, noted: set[int]) -> None:
    end = time.monotonic() + (timeout or 0)
    while True:
        try:
            sem.acquire(None if timeout is None else max(end - time.monotonic(), 0))
            return
        except posix_ipc.SignalError:
            if stop := noted & STOP:
                sys.exit(128 + min(stop))


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
    add("-n", "--name", type=semaphore_name, default="/test", help="of the semaphore (%(default)s)")
    add("-r", "--release", action="store_true", help="give one back")
    how_long("-t", "--timeout", type=common.seconds, default=0, metavar="SECONDS", help="(0)")
    how_long("-w", "--wait", dest="timeout", action="store_const", const=None, help="for ever")
    add("command", nargs="*", metavar="COMMAND", help="hold one while the command runs")
    args = parser.parse_args()
    if args.release and args.command:
        parser.error("-r takes no command")
    if not posix_ipc.SEMAPHORE_VALUE_SUPPORTED:
        raise common.failure(args.name, "this system does not tell the value of a semaphore")
    try:
        if args.release:
            sem = open_semaphore(args.name, 0)
            sem.release()
        else:
            sem = open_semaphore(args.name, posix_ipc.O_CREAT)
            noted = common.note_signals()
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup(1) sets it
                signal.signal(signal.SIGHUP, lambda number, frame: noted.add(number))
            acquire(sem, args.timeout, noted)
        if args.command:
            try:
                sys.exit(hold(args.command, noted))
            finally:
                sem.release()
        print(f"semaphore: {sem.value}")
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    main()
