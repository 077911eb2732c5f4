"""POSIX shared memory, the client: writes each line it reads to the segment.

    posix_shm_client.py             type lines; Ctrl-D ends it
    date | posix_shm_client.py      the same from a pipe

Shows shm_open(3), flock(2) as the lock, and how to write so that nobody sees half a text: UTF-8
from the first byte, a NUL unless it fills the segment, 0x01 last while it is written.
Read shm_overview(7), then posix_shm_server.py; sysv_shm_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///

import argparse
import fcntl
import os
import signal
import sys

import posix_ipc

import common

CURES = {
    "ermission": "`ls -l /dev/shm` shows owner and mode",
    "No space left": "in /dev/shm, or where the output goes (`df`)",
}
WRITING = b"\x01"  # the last byte of a segment while a write is in progress, or was cut short


def segment_name(text: str) -> str:
    if text[:1] == "/" and "/" not in text[1:] and 2 <= len(os.fsencode(text)) <= 256:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to 255 bytes without one")


def open_segment(name: str, size: int) -> posix_ipc.SharedMemory:
    os.umask(0)  # or shm_open(3) takes the umask off the mode
    try:
        shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        # O_CREAT would not do: fs.protected_regular forbids it on another user's (proc(5)).
        shm = posix_ipc.SharedMemory(name)
    if os.fstat(shm.fd).st_size == 0:
        fcntl.flock(shm.fd, fcntl.LOCK_EX)
        if os.fstat(shm.fd).st_size == 0:  # still, so no other process was faster
            try:
                os.posix_fallocate(shm.fd, 0, size)  # ftruncate(2) would reserve no memory
            except OSError:
                shm.unlink()
                raise
        fcntl.flock(shm.fd, fcntl.LOCK_UN)
    return shm


def old_length(shm: posix_ipc.SharedMemory, size: int) -> int:
    if os.pread(shm.fd, 1, size - 1) == WRITING:
        return size  # a write was cut short, and what it left may be anywhere
    length, part = 0, b""
    while b"\0" not in part and (part := os.pread(shm.fd, 2**16, length)):
        length += len(part.partition(b"\0")[0])
    return length


def write_text(shm: posix_ipc.SharedMemory, text: bytes) -> None:
    fcntl.flock(shm.fd, fcntl.LOCK_EX)  # the kernel unlocks when its holder dies, even by SIGKILL
    signal.pthread_sigmask(signal.SIG_BLOCK, common.STOP)  # Ctrl-C waits until the text is whole
    try:
        stat = os.fstat(shm.fd)
        if stat.st_nlink == 0:  # what is unlinked lives on while it is open
            raise posix_ipc.ExistentialError("the segment was removed")
        size = stat.st_size
        text.decode()
        if not size or len(text) > size or b"\0" in text or text[size - 1 :] == WRITING:
            raise ValueError(f"the text does not fit: {len(text)} bytes, the segment has {size}")
        # What takes time comes before the mark. NULs are to cover the rest of the old text.
        data = text.ljust(max(old_length(shm, size), len(text) + 1), b"\0")[: size - 1]
        if stat.st_blocks * 512 < size:  # somebody else made it, with holes: fill them, or fail now
            os.posix_fallocate(shm.fd, 0, len(data) + 1)
        os.pwrite(shm.fd, WRITING, size - 1)
        done = 0
        while done < len(data):
            done += os.pwrite(shm.fd, data[done:], done)
        os.pwrite(shm.fd, text[size - 1 :] or b"\0", size - 1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, common.STOP)
        fcntl.flock(shm.fd, fcntl.LOCK_UN)


def write_lines(shm: posix_ipc.SharedMemory, name: str) -> int:
    print(f"write to {name}")
    status = 0
    prompt = "Please enter something: " if sys.stdin.isatty() else ""
    while True:
        print(prompt, end="", flush=True)
        if not (line := sys.stdin.buffer.readline()):
            break
        try:
            write_text(shm, line.rstrip(b"\r\n"))
        except ValueError as error:  # the segment keeps what it had
            print(f"{common.SCRIPT}: {name}: {error}", file=sys.stderr)
            status = 1
    print(end="\n" if prompt else "")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add = parser.add_argument
    add("-n", "--name", type=segment_name, default="/test", help="of the segment (%(default)s)")
    add("--size", type=common.integer(1, 2**47), metavar="BYTES", help="of a new one (4096)")
    args = parser.parse_args()
    try:
        shm = open_segment(args.name, args.size or 4096)
        common.compare(args.name, "--size", args.size, os.fstat(shm.fd).st_size)
        return write_lines(shm, args.name)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    sys.exit(main())
