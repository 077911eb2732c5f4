"""System V shared memory, the server: prints the text in the segment every 3 seconds.

    sysv_shm_server.py              in one terminal, and sysv_shm_client.py in another
    sysv_shm_server.py --clean      removes the segment and its lock

Shows shmget(2), shmat(2), a semaphore as the lock, and how to read whole texts only, whoever dies.
Read sysvipc(7), then sysv_shm_client.py; posix_shm_server.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///

import contextlib
import os
import time
from collections.abc import Iterator

import sysv_ipc

# --- the segment: these functions work in any program


def check_owner(thing: sysv_ipc.SharedMemory | sysv_ipc.Semaphore) -> None:
    for owner in {thing.uid, thing.cuid} - {os.geteuid()}:  # its creator (cuid) keeps all rights
        raise PermissionError(f"belongs to uid {owner}, not to uid {os.geteuid()}")


def open_segment(key: int, mode: int = 0o600, size: int = 4096) -> sysv_ipc.SharedMemory:
    """Make the segment, or open the one that is there; mode and size (bytes) are a new one's.
    Raises PermissionError for another user's segment or lock."""
    with contextlib.suppress(sysv_ipc.ExistentialError):  # there is no lock
        check_owner(sysv_ipc.Semaphore(~key, mode=0o400))
    try:
        # Not IPC_CREX: the package would fill it, when others may have written to it.
        segment = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREAT, mode, size)
    except (ValueError, sysv_ipc.PermissionsError):  # it is smaller, or to be read only
        segment = sysv_ipc.SharedMemory(key, mode=0o400)
    check_owner(segment)
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        # By one semop(2) the lock gets its value, so nobody has it before.
        sysv_ipc.Semaphore(~key, sysv_ipc.IPC_CREX, segment.mode & 0o777 | 0o600).release()
    return segment


@contextlib.contextmanager
def locked(segment: sysv_ipc.SharedMemory, timeout: float = 10) -> Iterator[None]:
    """Hold the lock, the semaphore ~KEY, which is 1 while it is free, or raise TimeoutError."""
    lock = sysv_ipc.Semaphore(~segment.key)
    lock.undo = True  # SEM_UNDO: the kernel unlocks when its holder dies, even by SIGKILL
    lock.block = False  # IPC_NOWAIT
    for _ in range(round(timeout * 100) + 1):
        with contextlib.suppress(sysv_ipc.BusyError):
            lock.acquire()
            break
        time.sleep(0.01)
    else:
        never = "the lock never got its value: sysv_shm_server.py --clean removes it"
        late = TimeoutError(f"locked by process {lock.last_pid}")
        raise late if lock.o_time else sysv_ipc.Error(never)
    try:
        yield
    finally:
        lock.release()


def read_text(segment: sysv_ipc.SharedMemory, timeout: float = 10) -> str | None:
    """Return the text, or None when the last byte is 0x01: a write was cut short. TimeoutError."""
    data, length = b"", 4096
    with locked(segment, timeout):
        if segment.read(1, segment.size - 1) == b"\x01":
            return None
        while b"\0" not in (data := segment.read(length)) and length < segment.size:
            length *= 4
    return data.partition(b"\0")[0].decode(errors="backslashreplace")


# --- the command line

import argparse
import signal
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import common

CURES = {
    "ermission": "`ipcs -m -s` shows owner and mode",
    "ENOSPC": "kernel.shmmni and kernel.shmall are the limits",
    "No shared": "or its size is over kernel.shmmax",
}


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, None, __doc__, formatter_class=common.FORM)
    add = parser.add_argument
    add("-k", "--key", type=common.key, default=200, help="key of the segment (default: 200)")
    add("-i", "--interval", type=common.seconds, default=3, help="pause in seconds (default: 3)")
    add("-c", "--count", type=common.count, metavar="N", help="stop after N readings")
    add("--changes", action="store_true", help="print the text only when it has changed")
    add("--size", type=common.size, metavar="BYTES", help="of a new segment (default: 4096)")
    add("--mode", type=common.mode, metavar="OCTAL", help="of a new segment (default: 600)")
    add("--clean", action="store_true", help="remove the segment and its lock, and exit")
    args = parser.parse_args()
    readings, due, previous = 0, 0.0, object()
    try:
        if args.clean:
            done = "nothing to remove:"
            for kind, key in ((sysv_ipc.SharedMemory, args.key), (sysv_ipc.Semaphore, ~args.key)):
                with contextlib.suppress(sysv_ipc.ExistentialError):
                    kind(key, mode=0).remove()
                    done = "removed"
            common.put(f"{done} {args.key}")
            return 0
        mode = 0o600 if args.mode is None else args.mode
        segment = open_segment(args.key, mode, args.size or 4096)
        common.compare(args.key, "--mode", args.mode, segment.mode & 0o777, "o")
        common.compare(args.key, "--size", args.size, segment.size)
        stop = common.stop_signals()
        common.put(f"start shared memory server: {args.key}")
        common.ready()
        while readings != args.count and not stop:
            if segment.mode & 0o1000:  # SHM_DEST: what is removed lives on while it is attached
                return common.complain(args.key, "the segment was removed")
            if time.monotonic() < due:
                time.sleep(max(0, min(due - time.monotonic(), 0.9)))  # no signal ends it (PEP 475)
                continue
            due = time.monotonic() + max(args.interval, 0.01)
            try:
                text = read_text(segment, 0.9)
                if text != previous or not args.changes:
                    common.put("(incomplete write)" if text is None else text, timed=True)
                readings, previous = readings + 1, text
            except TimeoutError as error:  # whoever has the lock may be stopped (SIGSTOP)
                common.complain(args.key, error)
        common.put(f"end shared memory server: {args.key}")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.key, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
