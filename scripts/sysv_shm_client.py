"""System V shared memory, the client: writes each line it reads to the segment.

    sysv_shm_client.py              type lines; Ctrl-D ends it
    date | sysv_shm_client.py       the same from a pipe

Shows shmget(2), shmat(2), a semaphore as the lock, and how to write so that nobody sees half a
text: UTF-8 from the first byte, a NUL unless it fills the segment, 0x01 last while it is written.
Read sysvipc(7), then sysv_shm_server.py; posix_shm_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///

import argparse
import contextlib
import signal
import sys
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


def open_lock(key: int) -> sysv_ipc.Semaphore:
    """Open the semaphore ~KEY, which is 1 while the segment KEY is not locked."""
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        # One semop(2) gives it value and o_time, so that nobody sees it without its value.
        sysv_ipc.Semaphore(~key, sysv_ipc.IPC_CREX, mode=0o600).release()
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


def open_segment(key: int, size: int) -> sysv_ipc.SharedMemory:
    with contextlib.suppress(sysv_ipc.ExistentialError):
        return sysv_ipc.SharedMemory(key)
    try:
        # Not IPC_CREX: the package would fill the segment, when others may have written to it.
        return sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREAT, mode=0o600, size=size)
    except ValueError:
        with contextlib.suppress(sysv_ipc.ExistentialError):
            return sysv_ipc.SharedMemory(key)  # somebody made a smaller one
        raise


def old_length(shm: sysv_ipc.SharedMemory, size: int) -> int:
    if shm.read(1, size - 1) == WRITING:
        return size  # a write was cut short, and what it left may be anywhere
    length, part = 0, b""
    while b"\0" not in part and length < size:
        part = shm.read(2**16, length)
        length += len(part.partition(b"\0")[0])
    return length


def acquire(lock: sysv_ipc.Semaphore) -> None:
    while True:
        try:
            lock.acquire()
            return
        except sysv_ipc.Error as error:
            if (
                type(error) is not sysv_ipc.Error
            ):  # EINTR has no class; Ctrl-Z and fg do it (signal(7))
                raise


def write_text(shm: sysv_ipc.SharedMemory, lock: sysv_ipc.Semaphore, text: bytes) -> None:
    acquire(lock)
    signal.pthread_sigmask(signal.SIG_BLOCK, common.STOP)  # Ctrl-C waits until the text is whole
    try:
        if shm.mode & 0o1000:  # SHM_DEST: what is removed lives on while it is attached
            raise sysv_ipc.ExistentialError("the segment was removed")
        size = shm.size
        text.decode()
        if len(text) > size or b"\0" in text or text[size - 1 :] == WRITING:
            raise ValueError(f"the text does not fit: {len(text)} bytes, the segment has {size}")
        # What takes time comes before the mark. NULs are to cover the rest of the old text.
        data = text.ljust(max(old_length(shm, size), len(text) + 1), b"\0")[: size - 1]
        shm.write(WRITING, size - 1)
        shm.write(data)
        shm.write(text[size - 1 :] or b"\0", size - 1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, common.STOP)
        lock.release()


def write_lines(shm: sysv_ipc.SharedMemory, lock: sysv_ipc.Semaphore, key: int) -> int:
    print(f"write to {key}")
    status = 0
    prompt = "Please enter something: " if sys.stdin.isatty() else ""
    while True:
        print(prompt, end="", flush=True)
        if not (line := sys.stdin.buffer.readline()):
            break
        try:
            write_text(shm, lock, line.rstrip(b"\r\n"))
        except ValueError as error:  # the segment keeps what it had
            print(f"{common.SCRIPT}: {key}: {error}", file=sys.stderr)
            status = 1
    print(end="\n" if prompt else "")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add = parser.add_argument
    add("-k", "--key", type=KEY, default=200, help="of the segment (%(default)s)")
    add("--size", type=common.integer(1, 2**47), metavar="BYTES", help="of a new one (4096)")
    args = parser.parse_args()
    try:
        lock = open_lock(args.key)
        shm = open_segment(args.key, args.size or 4096)
        common.compare(args.key, "--size", args.size, shm.size)
        return write_lines(shm, lock, args.key)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    sys.exit(main())
