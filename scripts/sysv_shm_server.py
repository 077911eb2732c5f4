"""System V shared memory, the server: prints the text in the segment every 3 seconds.

    sysv_shm_server.py              in one terminal (Ctrl-C ends it), sysv_shm_client.py in another

Shows shmget(2), shmat(2), a semaphore as the lock, and how to read whole texts only, whoever dies.
Read sysvipc(7), then sysv_shm_client.py; posix_shm_server.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import ctypes
import os
import time
from collections.abc import Iterator

import sysv_ipc

# --- the segment: these functions work in any program
LIBC = ctypes.CDLL(None, use_errno=True)  # for semtimedop(2); for usleep(3), as a signal ends it


def open_segment(key: int, mode: int = 0o600, size: int = 4096) -> sysv_ipc.SharedMemory:
    """Make or open a segment (size: bytes). Raises PermissionError, sysv_ipc.PermissionsError."""
    with contextlib.suppress(sysv_ipc.ExistentialError):  # there is no lock yet
        lock = sysv_ipc.Semaphore(~key, mode=0o400)
        if {lock.uid, lock.cuid} != {os.geteuid()}:  # cuid made it, and keeps all rights
            raise PermissionError(f"belongs to uid {lock.uid}, made by uid {lock.cuid}")
    try:
        segment = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREAT, mode, size)  # IPC_CREX blanks it
    except (ValueError, sysv_ipc.PermissionsError):  # it is smaller, or to be read only
        segment = sysv_ipc.SharedMemory(key, mode=0o400)
    with contextlib.ExitStack() as failed:
        failed.callback(segment.detach)
        if {segment.uid, segment.cuid} != {os.geteuid()}:
            raise PermissionError(f"belongs to uid {segment.uid}, made by uid {segment.cuid}")
        with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there; a new one is 0: locked
            sysv_ipc.Semaphore(~key, sysv_ipc.IPC_CREX, segment.mode & 0o777 | 0o600).release()
        sysv_ipc.Semaphore(~key).mode = segment.mode & 0o777 | 0o600  # whoever may write may lock
        failed.pop_all()  # nothing failed: it stays open
    return segment


@contextlib.contextmanager
def locked(segment: sysv_ipc.SharedMemory, timeout: float = 10) -> Iterator[None]:
    """Hold the lock ~KEY; read_text() takes it itself. Raises TimeoutError, or sysv_ipc.Error."""
    lock = sysv_ipc.Semaphore(~segment.key)
    take = (ctypes.c_short * 3)(0, -1, 0x1000)  # a struct sembuf: 1 less of the first
    give = (ctypes.c_short * 3)(0, 1, 0x1000)  # SEM_UNDO: the kernel does so for the dead
    end = time.monotonic() + timeout
    limit = (ctypes.c_long * 2)(0, 1)  # a struct timespec: the first try waits for a nanosecond
    while not lock.o_time or LIBC.semtimedop(lock.id, take, 1, limit):  # o_time: it has its value
        if not any(limit):  # the time was up before this try, which did not wait
            never = sysv_ipc.Error(f"the lock never got its value: `ipcrm -s {lock.id}` removes it")
            raise TimeoutError(f"locked by process {lock.last_pid}") if lock.o_time else never
        limit[:] = list(divmod(int(max(0, min(end - time.monotonic(), 1e9)) * 1e9), 10**9))
        time.sleep(0.001)
    try:  # a handler that raises right before this leaves it locked
        yield
    finally:
        LIBC.semop(lock.id, give, 1)  # no error where the lock was removed: what you raise counts


def read_text(segment: sysv_ipc.SharedMemory, timeout: float = 10) -> str | None:
    """Return the text, or None for a write cut short (0x01 last). Raises what locked() raises."""
    data = b""
    with locked(segment, timeout):
        if segment.read(1, segment.size - 1) == b"\x01":
            return None
        while b"\0" not in data and len(data) < segment.size:
            data += segment.read(len(data) + 4096, len(data))
    return data.partition(b"\0")[0].decode(errors="backslashreplace")


# --- the command line
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"perm": "`ipcs`", "enos": "kernel.shmmni, shmall", "no shared": "removed or kernel.shmmax"}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("-i", "--interval", type=common.seconds, default=3, help="pause in seconds (default: 3)")
    add("-c", "--count", type=common.count, metavar="N", help="stop after N readings (else never)")
    add("--changes", action="store_true", help="print the text only when it has changed")
    add("--size", type=common.size, metavar="BYTES", help="size of a new segment (default: 4096)")
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new segment (default: 600)")
    add("--clean", action="store_true", help="remove the segment and its lock, and exit")
    args = parser.parse_args()
    readings = 0
    due = 0.0
    text: str | None = "\0"  # no text has one, so that the first one differs
    try:
        if args.clean:
            ids = (LIBC.shmget(args.key, 0, 0), LIBC.semget(~args.key, 0, 0))  # -1: there is none
            with contextlib.suppress(sysv_ipc.ExistentialError):
                sysv_ipc.remove_shared_memory(ids[0])  # by its id: to open one is to read it
            with contextlib.suppress(sysv_ipc.ExistentialError):
                sysv_ipc.remove_semaphore(ids[1])
            done = "nothing to remove:" if ids == (-1, -1) else "removed"
            common.put(f"{done} {args.key}")
            return 0
        mode = 0o600 if args.mode is None else args.mode
        stop = common.stop_signals()  # before a signal can part making and first value
        segment = open_segment(args.key, mode, args.size or 4096)
        common.compare(args.key, "--mode is", args.mode, segment.mode & 0o777, "o")
        common.compare(args.key, "--size is", args.size, segment.size)
        common.ready(f"start shared memory server: {args.key}")
        while readings != args.count and not stop:
            LIBC.usleep(int(max(0, min(due - time.monotonic(), 1)) * 1e6))
            if segment.mode & 0o1000:  # SHM_DEST: what is removed lives on while it is attached
                return common.complain(args.key, "the segment was removed")
            if time.monotonic() >= due and not stop:
                due = time.monotonic() + max(args.interval, 0.01)
                try:
                    previous, text = text, read_text(segment, 0.9)
                    if text != previous or not args.changes:
                        common.put("(incomplete write)" if text is None else text, timed=True)
                    readings += 1
                except TimeoutError as error:  # whoever has the lock may be stopped (SIGSTOP)
                    common.complain(args.key, error)
        common.put(f"end shared memory server: {args.key}")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError, AttributeError) as error:
        return common.complain(args.key, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
