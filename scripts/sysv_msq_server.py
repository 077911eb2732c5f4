"""System V message queue, the server: prints every message that is sent to the queue.

    sysv_msq_server.py           in one terminal (Ctrl-C ends it), sysv_msq_client.py in another
    sysv_msq_server.py --clean   removes the queue

Shows msgget(2), msgrcv(2), msgctl(2), and how to stop without losing a message.
Read sysvipc(7), then sysv_msq_client.py; posix_msq_server.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Iterator, Sized

import sysv_ipc

# --- the queue: these functions work in any program
LIBRT = ctypes.CDLL(None)  # for timer_create(2)
with contextlib.suppress(OSError):
    LIBRT = ctypes.CDLL("librt.so.1")  # where it is before glibc 2.34


def open_queue(key: int, mode: int = 0o600) -> sysv_ipc.MessageQueue:
    """Make the queue, or open the one that is there, to receive from it. The mode is that of a new
    queue. Raises PermissionError, or sysv_ipc.PermissionsError, for another user's queue."""
    longest = 2**24  # bytes; a message that is longer would never leave the queue
    with contextlib.suppress(OSError), open("/proc/sys/kernel/msgmax", "rb") as msgmax:
        longest = max(int(msgmax.read()), longest)
    while True:
        with contextlib.suppress(sysv_ipc.ExistentialError):  # if it is there
            sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, mode)
        with contextlib.suppress(sysv_ipc.ExistentialError):  # if somebody has just removed it
            queue = sysv_ipc.MessageQueue(key, mode=0o400, max_message_size=longest)  # 0o400: read
            if {queue.uid, queue.cuid} != {os.geteuid()}:  # cuid made it, and keeps all rights
                raise PermissionError(f"belongs to uid {queue.uid}, made by uid {queue.cuid}")
            return queue


def messages(queue: sysv_ipc.MessageQueue, stop: Sized, msgtyp: int = 0) -> Iterator[bytes]:
    """Yield the body of each message, until `stop` has something in it. In the main thread (others
    get ValueError): msgrcv(2) has no time limit, so a timer ends its wait by a signal, SIGRTMAX.
    A handler of yours may fill `stop`, but must not raise (Python's own of Ctrl-C does), or what
    was just taken is lost. Raises sysv_ipc.ExistentialError, PermissionsError and MemoryError."""
    timer = ctypes.c_void_p()
    while not stop:
        try:
            body, _type = queue.receive(block=False, type=msgtyp)
        except sysv_ipc.BusyError:  # none: wait 0.9 s (0.1 s more, if the timer rang too early)
            handler = signal.signal(signal.SIGRTMAX, lambda number, frame: None)
            event = struct.pack("Piii44x", 0, signal.SIGRTMAX, 4, os.getpid())  # SIGEV_THREAD_ID
            if LIBRT.timer_create(1, event, ctypes.byref(timer)):  # 1: CLOCK_MONOTONIC
                signal.signal(signal.SIGRTMAX, handler)
                raise MemoryError("no timer: `ulimit -i` is the limit") from None
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGRTMAX})
            try:
                LIBRT.timer_settime(timer, 0, struct.pack("4l", 0, 10**8, 0, 9 * 10**8), None)
                if stop:  # it came in the last microseconds
                    return
                body, _type = queue.receive(type=msgtyp)
            except sysv_ipc.Error:  # a signal came, or it is an error, which comes again above
                LIBRT.timer_settime(timer, 0, bytes(32), None)  # a call runs handlers: ours is off
                continue
            finally:
                LIBRT.timer_delete(timer)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                signal.signal(signal.SIGRTMAX, handler)
        yield body


# --- the command line
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common
import itertools
import json

CURES = {"permi": "`ipcs -q` shows owner and mode", "system limit": "kernel.msgmni is the limit"}
ENDS = (sysv_ipc.ExistentialError, sysv_ipc.PermissionsError, common.OutputError, MemoryError)
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def show(body: bytes, as_json: bool) -> None:
    body = body.rstrip(b"\0")  # C programs send the NUL that ends a string
    try:
        value = DECODER.decode(body.decode())
        text = json.dumps(value, allow_nan=False) if as_json else repr(value)
        common.put(text, timed=not as_json)
    except (ValueError, RecursionError):
        common.put(repr(body), timed=True, to=2 if as_json else 1)


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("-c", "--count", type=common.count, metavar="N", help="stop after N messages (else never)")
    add("--json", action="store_true", help="print only JSON; the rest goes to standard error")
    types = common.number("-2147483647", "2147483647")
    which = "take only messages of type N, or for -N the lowest type up to N (default: 0, any)"
    add("--type", type=types, default=0, metavar="N", help=which)
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new queue (default: 600)")
    add("--clean", action="store_true", help="remove the queue and exit")
    args = parser.parse_args()
    if not hasattr(LIBRT, "timer_create"):
        return common.complain(args.key, "this system has no timer_create(2)")
    try:
        if args.clean:
            done = "nothing to remove:"
            with contextlib.suppress(sysv_ipc.ExistentialError):
                sysv_ipc.MessageQueue(args.key, mode=0).remove()
                done = "removed"
            common.put(f"{done} {args.key}")
            return 0
        stop = common.stop_signals()
        queue = open_queue(args.key, 0o600 if args.mode is None else args.mode)
        common.compare(args.key, "--mode is", args.mode, queue.mode & 0o777, "o")
        common.ready(f"start message queue server: {args.key}", to=2 if args.json else 1)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.key, error, CURES)
    try:
        for body in itertools.islice(messages(queue, stop, args.type), args.count):
            show(body, args.json)
        common.put(f"end message queue server: {args.key}", to=2 if args.json else 1)
    except ENDS as error:  # what ends the loop, and is no error of your work
        return common.complain(args.key, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
