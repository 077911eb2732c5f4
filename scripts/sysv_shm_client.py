"""System V shared memory, the client: writes each line it reads to the segment.

    sysv_shm_client.py              type lines; Ctrl-D ends it
    date | sysv_shm_client.py       the same from a pipe

Shows shmget(2), shmat(2), a semaphore as the lock, and how to write whole texts (UTF-8 and a NUL).
Read sysvipc(7), then sysv_shm_server.py; posix_shm_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

import sysv_ipc

# --- the segment: these functions work in any program
LIBC = ctypes.CDLL(None, use_errno=True)  # for semtimedop(2), which sysv_ipc does not have


def open_segment(key: int, mode: int = 0o600, size: int = 4096) -> sysv_ipc.SharedMemory:
    """Make or open a segment; mode and size (bytes) are a new one's. sysv_ipc.PermissionsError."""
    flags = sysv_ipc.IPC_CREAT  # sysv_ipc blanks what IPC_CREX makes
    with contextlib.suppress(sysv_ipc.ExistentialError):  # there is no lock yet
        lock = sysv_ipc.Semaphore(~key)
        if {lock.uid, lock.cuid} != {os.geteuid()}:  # cuid made it, and keeps all rights
            flags = 0  # another user's lock, so it is for that user to make the segment
    try:
        segment = sysv_ipc.SharedMemory(key, flags, mode, size)
    except ValueError:  # the one there is smaller, or size is over kernel.shmmax
        segment = sysv_ipc.SharedMemory(key)
    with contextlib.ExitStack() as failed:
        failed.callback(segment.detach)
        if flags and {segment.uid, segment.cuid} == {os.geteuid()}:  # another's lock is his to make
            with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there; a new one is locked
                sysv_ipc.Semaphore(~key, sysv_ipc.IPC_CREX, segment.mode & 0o777 | 0o600).release()
            sysv_ipc.Semaphore(~key).mode = segment.mode & 0o777 | 0o600  # who may write may lock
        failed.pop_all()  # nothing failed: it stays open
    return segment


@contextlib.contextmanager
def locked(segment: sysv_ipc.SharedMemory, timeout: float = 10) -> Iterator[None]:
    """Hold the lock ~KEY; write_text() takes it itself. Raises TimeoutError, or sysv_ipc.Error."""
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


def write_text(segment: sysv_ipc.SharedMemory, text: str, timeout: float = 10) -> None:
    """Write the text in place of the old one; in a program of threads, no handler may raise in it.
    Raises ValueError: too long, TimeoutError, ExistentialError: removed; the old text stays."""
    data = text.encode()
    with locked(segment, timeout):
        if segment.mode & 0o1000:  # SHM_DEST: what is removed lives on while it is attached
            raise sysv_ipc.ExistentialError("the segment was removed")
        size = segment.size
        if len(data) > size or b"\0" in data or data[size - 1 :] == b"\x01":
            raise ValueError(f"the text does not fit, or has a NUL: {len(data)} bytes of {size}")
        # What takes time comes first. NULs are to cover the rest of the old text.
        last = len(data)
        while last < size and b"\0" not in segment.read(4096, last):
            last += 4096
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))  # their handlers may raise
            segment.write(b"\x01", size - 1)  # till the end, or for good after a kill
            segment.write(memoryview(data)[: size - 1])
            # The last NULs first: after a kill, the next write finds what is left of the old text.
            for start in reversed(range(len(data), min(last + 1, size - 1), 4096)):
                segment.write(bytes(min(4096, size - 1 - start)), start)
            segment.write(data[size - 1 :] or b"\0", size - 1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- the command line
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"perm": "`ipcs`", "enos": "kernel.shmmni, shmall", "no shared": "removed or kernel.shmmax"}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("--size", type=common.size, metavar="BYTES", help="size of a new segment (default: 4096)")
    args = parser.parse_args()
    prompt = "Please enter something: " if sys.stdin.isatty() else ""
    status = 0
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it parts no lock
        segment = open_segment(args.key, size=args.size or 4096)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        common.compare(args.key, "--size is", args.size, segment.size)
        common.put(f"write to {args.key}")
        while True:
            common.put(prompt, end="")
            line = sys.stdin.buffer.readline()
            if not line.endswith(b"\n") and not os.get_blocking(0) and os.read(0, 1):
                raise BlockingIOError("standard input does not wait")  # it was not at its end
            if not line:
                break
            try:
                write_text(segment, line.rstrip(b"\r\n").decode())
            except ValueError as error:  # the segment keeps what it had
                status = common.complain(args.key, error)
        common.put("", end="\n" if prompt else "")
    except (sysv_ipc.Error, OSError, ValueError, MemoryError, AttributeError) as error:
        return common.complain(args.key, error, CURES)
    return status


if __name__ == "__main__":
    common.run(main)
