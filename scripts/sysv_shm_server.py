"""System V shared memory, the server: prints the text in the segment every 3 seconds.

    sysv_shm_server.py              in one terminal (Ctrl-C ends it), and in another
    sysv_shm_client.py              which writes the lines that are typed
    sysv_shm_server.py --clean      removes the segment and its lock

Shows shmget(2), shmat(2), a semaphore as the lock, and how to read whole texts, whoever dies.
Read sysvipc(7), then sysv_shm_client.py; posix_shm_server.py is its POSIX twin.
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
    "ermission": "`ipcs -m -s` shows owner and mode",
    "ENOSPC": "kernel.shmmni and kernel.shmall are the limits",
    "No space left": "in `sysctl kernel.sem`, or where the output goes (`df`)",
}
KEY = common.integer(1, 2**31 - 1, 0)  # 0 is IPC_PRIVATE, a new object at every open
WRITING = b"\x01"  # the last byte of a segment while a write is in progress, or was cut short


def open_lock(key: int, mode: int) -> sysv_ipc.Semaphore:
    """Open the semaphore ~KEY, which is 1 while the segment KEY is not locked."""
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        # One semop(2) gives it value and o_time, so that nobody sees it without its value.
        sysv_ipc.Semaphore(~key, sysv_ipc.IPC_CREX, mode=mode | 0o600).release()
    lock = sysv_ipc.Semaphore(~key)
    end = time.monotonic() + 3
    while not lock.o_time:  # its creator is not done
        if time.monotonic() > end:
            raise common.failure(
                key, "the lock never got its value: sysv_shm_server.py --clean removes it"
            )
        time.sleep(0.01)
    lock.undo = True  # SEM_UNDO: the kernel unlocks when its holder dies, even by SIGKILL
    return lock


def open_segment(key: int, mode: int, size: int) -> sysv_ipc.SharedMemory:
    with contextlib.suppress(sysv_ipc.ExistentialError):
        return sysv_ipc.SharedMemory(key, mode=0o400)  # attached read-only, by this mode
    try:
        # Not IPC_CREX: the package would fill the segment, when others may have written to it.
        return sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREAT, mode=mode, size=size)
    except ValueError:
        with contextlib.suppress(sysv_ipc.ExistentialError):
            return sysv_ipc.SharedMemory(key, mode=0o400)  # somebody made a smaller one
        raise


def read_text(shm: sysv_ipc.SharedMemory) -> bytes:
    size = shm.size
    if shm.read(1, size - 1) == WRITING:
        return b"(incomplete write)"
    parts, offset, nul = [], 0, b""
    while not nul and offset < size:
        part = shm.read(2**20 if offset else 4096, offset)
        offset += len(part)
        part, nul, _ = part.partition(b"\0")
        parts.append(part)
    return b"".join(parts)


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def serve(args: argparse.Namespace) -> None:
    mode = 0o600 if args.mode is None else args.mode
    lock = open_lock(args.key, mode)
    shm = open_segment(args.key, mode, args.size or 4096)
    # A creator (cuid) keeps all rights, even when he has given the object away (uid).
    if others := {shm.uid, shm.cuid, lock.uid, lock.cuid} - {(me := os.geteuid())}:
        raise common.failure(args.key, f"belongs to uid {min(others)}, not to uid {me}")
    common.compare(args.key, "--mode", args.mode, shm.mode & 0o777, "o")
    common.compare(args.key, "--size", args.size, shm.size)
    lock.block = False  # IPC_NOWAIT
    common.stopped(0)  # from here on a signal waits for the loop
    print(f"start shared memory server: {args.key}")
    common.ready()
    readings, previous, due = 0, None, 0.0
    while readings != args.count and not common.stopped(min(max(due - time.monotonic(), 0.01), 1)):
        if shm.mode & 0o1000:  # SHM_DEST: what is removed lives on while it is attached
            raise common.failure(args.key, "the segment was removed")
        if time.monotonic() < due:
            continue
        try:
            lock.acquire()  # does not wait: the writer may be stopped (SIGSTOP)
        except sysv_ipc.BusyError:
            continue
        text = read_text(shm)
        lock.release()
        if text != previous or not args.changes:
            print(common.line(printable(text.decode(errors="backslashreplace"))))
        readings, previous, due = readings + 1, text, time.monotonic() + args.interval
    print(f"end shared memory server: {args.key}")


def clean(key: int) -> None:
    done = f"nothing to remove: {key}"
    for kind, its_key in ((sysv_ipc.SharedMemory, key), (sysv_ipc.Semaphore, ~key)):
        with contextlib.suppress(sysv_ipc.ExistentialError):
            kind(its_key, mode=0).remove()
            done = f"removed {key}"
    print(done)


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, count = parser.add_argument, common.integer(0, 10**12)
    add("-k", "--key", type=KEY, default=200, help="of the segment (%(default)s)")
    add("-i", "--interval", type=common.seconds, default=3, metavar="SECONDS", help="(%(default)s)")
    add("-c", "--count", type=count, metavar="N", help="stop after N readings")
    add("--changes", action="store_true", help="print the text only when it has changed")
    add("--size", type=common.integer(1, 2**47), metavar="BYTES", help="of a new one (4096)")
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new one (600)")
    add("--clean", action="store_true", help="remove the segment and exit")
    args = parser.parse_args()
    try:
        clean(args.key) if args.clean else serve(args)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    main()
