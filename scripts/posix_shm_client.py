"""POSIX shared memory, the client: writes each line it reads to the segment.

    posix_shm_client.py             type lines; Ctrl-D ends it
    date | posix_shm_client.py      the same from a pipe

Shows shm_open(3), O_TMPFILE of open(2), flock(2) as the lock, and how to write whole texts (UTF-8).
Read shm_overview(7), then posix_shm_server.py; sysv_shm_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator

import posix_ipc

# --- the segment: these functions work in any program


def open_segment(name: str, mode: int = 0o600, size: int = 4096) -> posix_ipc.SharedMemory:
    """Make or open a segment; mode and size (bytes) are a new one's. posix_ipc.PermissionsError."""
    while True:  # open it, or make it: again, when it is made or removed in between
        with contextlib.suppress(posix_ipc.ExistentialError), contextlib.ExitStack() as failed:
            segment = posix_ipc.SharedMemory(name)
            failed.callback(segment.close_fd)
            if os.fstat(segment.fd).st_size == 0 and os.fstat(segment.fd).st_uid == os.geteuid():
                os.posix_fallocate(segment.fd, 0, size)  # another program has not sized it
            for _ in range(100):
                if os.fstat(segment.fd).st_size == 0:  # another user has just made it, and sizes it
                    time.sleep(0.01)
            failed.pop_all()  # nothing failed: it stays open
            return segment
        fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)  # a file without a name yet: open(2)
        with contextlib.suppress(FileExistsError), os.fdopen(fd, "rb"):
            os.fchmod(fd, mode)  # whatever the umask is
            os.posix_fallocate(fd, 0, size)  # ftruncate(2) would reserve no memory
            os.link(f"/proc/self/fd/{fd}", f"/dev/shm/{name}", src_dir_fd=fd, follow_symlinks=True)


@contextlib.contextmanager
def locked(segment: posix_ipc.SharedMemory, timeout: float = 10) -> Iterator[None]:
    """Hold flock(2). TimeoutError: after so many seconds, posix_ipc.ExistentialError: removed.
    It is the open file's: a thread or a fork opens its own. A write_text() inside unlocks it."""
    end = time.monotonic() + timeout
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if os.fstat(segment.fd).st_nlink == 0:
                raise posix_ipc.ExistentialError("the segment was removed")
            if time.monotonic() >= end:
                raise TimeoutError(f"locked: `grep ':{os.fstat(segment.fd).st_ino} ' /proc/locks`")
            time.sleep(0.01)
        yield
    finally:  # also when Ctrl-C came right after flock(2)
        fcntl.flock(segment.fd, fcntl.LOCK_UN)


def write_text(segment: posix_ipc.SharedMemory, text: str, timeout: float = 10) -> None:
    """Write the text in place of the old one; in a program of threads, no handler may raise in it.
    Raises ValueError: too long, TimeoutError, FileNotFoundError, ExistentialError: removed."""
    data = text.encode()
    with locked(segment, timeout):
        at = f"/dev/shm/{segment.name}"  # what is removed lives on while it is open
        if os.path.islink(at) or not os.path.exists(at) or not os.path.samefile(segment.fd, at):
            raise posix_ipc.ExistentialError("the segment was removed")
        size = os.fstat(segment.fd).st_size
        most = min(size, 2**31 - 4096)  # pwrite(2) writes no more at once
        if not size or len(data) > most or b"\0" in data or data[size - 1 :] == b"\x01":
            raise ValueError(f"the text does not fit, or has a NUL: {len(data)} bytes of {size}")
        # What takes time or may fail comes first. NULs are to cover the rest of the old text.
        last = len(data)
        while last < size and b"\0" not in os.pread(segment.fd, 4096, last):
            last += 4096
        os.posix_fallocate(segment.fd, 0, min(last + 4096, size))  # others may make it with holes
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))  # their handlers may raise
            os.pwrite(segment.fd, b"\x01", size - 1)  # till the end, or for good after a kill
            os.pwrite(segment.fd, memoryview(data)[: size - 1], 0)
            # The last NULs first: after a kill, the next write finds what is left of the old text.
            for start in reversed(range(len(data), min(last + 1, size - 1), 4096)):
                os.pwrite(segment.fd, bytes(min(4096, size - 1 - start)), start)
            os.pwrite(segment.fd, data[size - 1 :] or b"\0", size - 1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- the command line
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"permi": "`ls -l /dev/shm`", "no space": "`df`", "no such file": "removed, or no /dev/shm"}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-n", "--name", type=common.name, default="/test", help="use this name (default: /test)")
    add("--size", type=common.size, metavar="BYTES", help="size of a new segment (default: 4096)")
    args = parser.parse_args()
    prompt = "Please enter something: " if sys.stdin.isatty() else ""
    status = 0
    try:
        segment = open_segment(args.name, size=args.size or 4096)
        common.compare(args.name, "--size is", args.size, os.fstat(segment.fd).st_size)
        common.put(f"write to {args.name}")
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
                status = common.complain(args.name, error)
        common.put("", end="\n" if prompt else "")
    except (posix_ipc.Error, OSError, ValueError, MemoryError, AttributeError) as error:
        return common.complain(args.name, error, CURES)
    return status


if __name__ == "__main__":
    common.run(main)
