"""POSIX shared memory, the server: prints the text in the segment every 3 seconds.

    posix_shm_server.py            in one terminal (Ctrl-C ends it), posix_shm_client.py in another

Shows shm_open(3), O_TMPFILE of open(2), flock(2), and how to read whole texts only, whoever dies.
Read shm_overview(7), then posix_shm_client.py; sysv_shm_server.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

import posix_ipc


# --- the segment: these functions work in any program
def open_segment(name: str, mode: int = 0o600, size: int = 4096) -> posix_ipc.SharedMemory:
    """Make or open it (size: bytes). Raises PermissionError, posix_ipc.PermissionsError."""
    gone = (FileNotFoundError, posix_ipc.ExistentialError)
    while True:  # open it, or make it: again, when it is made or removed in between
        with contextlib.suppress(*gone), contextlib.ExitStack() as failed:
            own = (there := os.lstat(f"/dev/shm/{name}")).st_uid == os.geteuid()
            if not own and os.access(f"/dev/shm/{name}", os.R_OK, effective_ids=True):
                raise PermissionError(f"belongs to uid {there.st_uid}, not to uid {os.geteuid()}")
            segment = posix_ipc.SharedMemory(name, read_only=own and not there.st_mode & 0o200)
            failed.callback(segment.close_fd)
            if own and os.path.samestat(there, os.fstat(segment.fd)):  # it is the same one still
                if there.st_size == 0:  # another program has made it, and not sized it
                    os.posix_fallocate(segment.fd, 0, size)
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
    It is the open file's: a thread or a fork opens its own. A read_text() inside unlocks it."""
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


def read_text(segment: posix_ipc.SharedMemory, timeout: float = 10) -> str | None:
    """Return the text, or None for a write cut short (0x01 last). Raises what locked() raises."""
    data = b""
    with locked(segment, timeout):
        # By pread(2): in an mmap(2), to touch a page that was truncated away is a fatal SIGBUS.
        if os.pread(segment.fd, 1, max(os.fstat(segment.fd).st_size - 1, 0)) == b"\x01":
            return None
        while b"\0" not in data and (more := os.pread(segment.fd, len(data) + 4096, len(data))):
            data += more
    return data.partition(b"\0")[0].decode(errors="backslashreplace")


# --- the command line
import ctypes  # for usleep(3): a signal ends it, while time.sleep goes on (PEP 475)
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common

CURES = {"permi": "`ls -l /dev/shm`", "no space": "`df`", "no such file": "removed, or no /dev/shm"}


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-n", "--name", type=common.name, default="/test", help="use this name (default: /test)")
    add("-i", "--interval", type=common.seconds, default=3, help="pause in seconds (default: 3)")
    add("-c", "--count", type=common.count, metavar="N", help="stop after N readings (else never)")
    add("--changes", action="store_true", help="print the text only when it has changed")
    add("--size", type=common.size, metavar="BYTES", help="size of a new segment (default: 4096)")
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new segment (default: 600)")
    add("--clean", action="store_true", help="remove the segment and exit")
    args = parser.parse_args()
    at = f"/dev/shm{args.name}"  # what is removed lives on while it is open
    readings = 0
    due = 0.0
    text: str | None = "\0"  # no text has one, so that the first one differs
    try:
        if args.clean:
            done = "nothing to remove:"
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(args.name)
                done = "removed"
            common.put(f"{done} {args.name}")
            return 0
        mode = 0o600 if args.mode is None else args.mode
        segment = open_segment(args.name, mode, args.size or 4096)
        common.compare(args.name, "--mode is", args.mode, os.fstat(segment.fd).st_mode & 0o777, "o")
        common.compare(args.name, "--size is", args.size, os.fstat(segment.fd).st_size)
        stop = common.stop_signals()
        common.ready(f"start shared memory server: {args.name}")
        while readings != args.count and not stop:
            ctypes.CDLL(None).usleep(int(max(0, min(due - time.monotonic(), 1)) * 1e6))
            if os.path.islink(at) or not os.path.exists(at) or not os.path.samefile(segment.fd, at):
                return common.complain(args.name, "the segment was removed")
            if time.monotonic() >= due and not stop:
                due = time.monotonic() + max(args.interval, 0.01)
                try:
                    previous, text = text, read_text(segment, 0.9)
                    if text != previous or not args.changes:
                        common.put("(incomplete write)" if text is None else text, timed=True)
                    readings += 1
                except TimeoutError as error:  # whoever has the lock may be stopped (SIGSTOP)
                    common.complain(args.name, error)
        common.put(f"end shared memory server: {args.name}")
    except (posix_ipc.Error, OSError, ValueError, MemoryError, AttributeError) as error:
        return common.complain(args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
