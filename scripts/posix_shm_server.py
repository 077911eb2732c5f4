"""POSIX shared memory, the server: prints the text in the segment every 3 seconds.

    posix_shm_server.py             in one terminal (Ctrl-C ends it), and in another
    posix_shm_client.py             which writes the lines that are typed
    cat /dev/shm/test               shows the text too
    posix_shm_server.py --clean     removes the segment

Shows shm_open(3), posix_fallocate(3), flock(2), and how to read whole texts only, whoever dies.
Read shm_overview(7), then posix_shm_client.py; sysv_shm_server.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///

import argparse
import fcntl
import os
import time

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


def open_segment(name: str, mode: int, size: int) -> posix_ipc.SharedMemory:
    os.umask(0)  # or shm_open(3) takes the umask off the mode
    try:
        shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode)
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


def read_text(shm: posix_ipc.SharedMemory) -> bytes:
    # By pread(2): in an mmap(2), touching a page that somebody truncated away is a fatal SIGBUS.
    size = os.fstat(shm.fd).st_size
    if size and os.pread(shm.fd, 1, size - 1) == WRITING:
        return b"(incomplete write)"
    parts, offset, nul = [], 0, b""
    while not nul and (part := os.pread(shm.fd, 2**20 if offset else 4096, offset)):
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
    shm = open_segment(args.name, mode, args.size or 4096)
    stat = os.fstat(shm.fd)
    if (uid := stat.st_uid) != os.geteuid():
        raise common.failure(args.name, f"belongs to uid {uid}, not to uid {os.geteuid()}")
    common.compare(args.name, "--mode", args.mode, stat.st_mode & 0o777, "o")
    common.compare(args.name, "--size", args.size, stat.st_size)
    common.stopped(0)  # from here on a signal waits for the loop
    print(f"start shared memory server: {args.name}")
    common.ready()
    readings, previous, due = 0, None, 0.0
    while readings != args.count and not common.stopped(min(max(due - time.monotonic(), 0.01), 1)):
        if os.fstat(shm.fd).st_nlink == 0:  # what is unlinked lives on while it is open
            raise common.failure(args.name, "the segment was removed")
        if time.monotonic() < due:
            continue
        try:
            # flock(2) would wait for a writer that was stopped (SIGSTOP), through any signal. The
            # kernel unlocks for one that was killed.
            fcntl.flock(shm.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        text = read_text(shm)
        fcntl.flock(shm.fd, fcntl.LOCK_UN)
        if text != previous or not args.changes:
            print(common.line(printable(text.decode(errors="backslashreplace"))))
        readings, previous, due = readings + 1, text, time.monotonic() + args.interval
    print(f"end shared memory server: {args.name}")


def clean(name: str) -> None:
    try:
        posix_ipc.unlink_shared_memory(name)
        print(f"removed {name}")
    except posix_ipc.ExistentialError:
        print(f"nothing to remove: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, count = parser.add_argument, common.integer(0, 10**12)
    add("-n", "--name", type=segment_name, default="/test", help="of the segment (%(default)s)")
    add("-i", "--interval", type=common.seconds, default=3, metavar="SECONDS", help="(%(default)s)")
    add("-c", "--count", type=count, metavar="N", help="stop after N readings")
    add("--changes", action="store_true", help="print the text only when it has changed")
    add("--size", type=common.integer(1, 2**47), metavar="BYTES", help="of a new one (4096)")
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new one (600)")
    add("--clean", action="store_true", help="remove the segment and exit")
    args = parser.parse_args()
    try:
        clean(args.name) if args.clean else serve(args)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    main()
