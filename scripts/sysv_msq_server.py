"""System V message queue, the server: prints every message that is sent to the queue.

    sysv_msq_server.py              in one terminal (Ctrl-C ends it), and in another
    sysv_msq_client.py              which sends messages
    sysv_msq_server.py --clean      removes the queue

Shows msgget(2), msgrcv(2), msgctl(2), and how to stop without losing a message.
Read sysvipc(7), then sysv_msq_client.py; posix_msq_server.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sized

import sysv_ipc


# --- the queue: these functions work in any program
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
    """Yield the body of each message, until `stop` has something in it. Main thread only: as
    msgrcv(2) has no time limit, SIGALRM ends its wait, and only that thread may set its handler.
    A signal handler may put it there, but must not raise (Python's own of Ctrl-C does): the message
    that msgrcv(2) has just taken off the queue would be lost, and SIGALRM stay as the wait has it.
    Raises sysv_ipc.ExistentialError: it was removed, sysv_ipc.PermissionsError: a new mode."""
    while not stop:
        try:
            body, _type = queue.receive(block=False, type=msgtyp)
        except sysv_ipc.BusyError:  # none: wait 0.9 s (0.1 s more, if an alarm came before that)
            handler = signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))  # or raises
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            while any(0 < signal.getitimer(signal.ITIMER_REAL)[0] < 1e-4 for _ in range(9)):
                pass  # till it has rung: one that is stopped in its last microsecond is lost
            signal.signal(signal.SIGALRM, lambda number, frame: None)
            left, interval = signal.setitimer(signal.ITIMER_REAL, 0)  # the program's own timer
            began = time.monotonic()
            rang = signal.SIGALRM in signal.sigpending()  # an alarm of the program, not yet seen
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 if rang else min(0.9, left or 0.9), 0.1)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
                body, _type = queue.receive(type=msgtyp)
            except sysv_ipc.Error:  # the alarm rang, or it is an error, which comes again above
                signal.setitimer(signal.ITIMER_REAL, 0)  # a call runs handlers: ours is off
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, handler)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                if rang:
                    os.kill(os.getpid(), signal.SIGALRM)
                if left or interval:  # the program's timer goes on; 0 is left when it rang
                    left = max((left or interval) - (time.monotonic() - began), 1e-6)
                    signal.setitimer(signal.ITIMER_REAL, left, interval)
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
