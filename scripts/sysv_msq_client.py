"""System V message queue, the client: sends {"count": 1}, {"count": 2}, ... or lines of JSON.

    sysv_msq_client.py                              15 messages, one a second
    sysv_msq_client.py -c 1 --type 9 --no-wait      one of type 9, if there is room
    echo '["any", "JSON"]' | sysv_msq_client.py --stdin

Shows msgget(2), msgsnd(2), types, and what to do about a full queue.
Read sysvipc(7), then sysv_msq_server.py; posix_msq_client.py is its POSIX twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["sysv-ipc>=1.2.0"]
# ///
import contextlib
import errno
import os
import time

import sysv_ipc

# --- the queue: these functions work in any program


def open_queue(key: int, mode: int = 0o600) -> sysv_ipc.MessageQueue:
    """Make the queue, or open the one that is there, to send to it. The mode is a new queue's.
    Raises sysv_ipc.PermissionsError."""
    while True:
        with contextlib.suppress(sysv_ipc.ExistentialError):  # if it is there
            sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, mode)
        with contextlib.suppress(sysv_ipc.ExistentialError):  # if somebody has just removed it
            # Here the mode asks to write only; the length of a message is left to msgsnd(2).
            return sysv_ipc.MessageQueue(key, mode=0o200, max_message_size=2**31 - 1)


def send(queue: sysv_ipc.MessageQueue, body: bytes, block: bool = True, msgtyp: int = 1) -> None:
    """Send a message of that type, in any thread; while the queue is full, wait or do not. Where a
    signal handler only notes a stop, pass block=False, and look at it between two tries. Raises
    sysv_ipc.BusyError when it is full and block is false, OSError or ValueError when the message
    is too long, and sysv_ipc.ExistentialError when the queue was removed."""
    while True:
        try:
            queue.send(body, block=False, type=msgtyp)
            return
        except OSError as error:
            if error.errno == errno.EINVAL:  # too long for kernel.msgmax, or
                with contextlib.suppress(sysv_ipc.PermissionsError):  # msgctl(2) asks for reading
                    queue.current_messages  # noqa: B018 - raises ExistentialError: it was removed
            raise
        except sysv_ipc.BusyError:  # it is full
            with contextlib.suppress(sysv_ipc.PermissionsError):  # msgctl(2) asks for reading
                if len(body) > queue.max_size:  # msgsnd(2) would wait for ever
                    limit = f"more than msg_qbytes, {queue.max_size}"
                    raise ValueError(f"{len(body)} bytes are {limit}") from None
            if not block:
                raise
        try:
            queue.send(body, type=msgtyp)
            return
        except sysv_ipc.Error:  # EINTR; removed: the next send above raises
            continue
        except OSError as error:
            if error.errno != errno.EINVAL:  # removed a moment ago: likewise
                raise


# --- the command line
import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common
import itertools
import json
from collections.abc import Iterator

CURES = {
    "permission": "`ipcs -q` shows owner and mode",
    "queue is full": "kernel.msgmnb is the limit of a new queue",
    "system limit": "kernel.msgmni is the limit",
    "invalid argument": "kernel.msgmax is the limit of a message",
    "msg_qbytes": "kernel.msgmnb is the limit of a new queue",
}
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def lines(key: int, refused: list[int]) -> Iterator[tuple[str, bytes]]:
    for number in itertools.count(1):
        line = sys.stdin.buffer.readline()
        if not line.endswith(b"\n") and not os.get_blocking(0) and os.read(0, 1):
            raise BlockingIOError("standard input does not wait")  # it was not at its end
        if not line:
            return
        try:
            text = repr(DECODER.decode(line.decode()))
        except (ValueError, RecursionError):
            refused.append(number)
            hint = ": a text stands in double quotes" if line[:1].isalpha() else ""
            common.complain(key, f"line {number} is not JSON{hint}")
        else:
            yield text, line.rstrip(b"\r\n")


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    add("-k", "--key", type=common.natural, default=200, help="use this key (default: 200)")
    add("-c", "--count", type=common.count, metavar="N", help="send N messages (default: 15)")
    add("-i", "--interval", type=common.seconds, help="seconds between two messages (default: 1)")
    add("--type", type=common.natural, default=1, metavar="N", help="send this type (default: 1)")
    add("--no-wait", action="store_true", help="fail when the queue is full (default: wait)")
    add("--stdin", action="store_true", help="send each line of standard input, which is JSON")
    add("-q", "--quiet", action="store_true", help="do not print what is sent")
    args = parser.parse_args()
    if args.interval is None:
        args.interval = 0 if args.stdin else 1
    if args.count is None and not args.stdin:
        args.count = 15
    refused: list[int] = []
    counts = ((repr({"count": n}), json.dumps({"count": n}).encode()) for n in itertools.count(1))
    messages = lines(args.key, refused) if args.stdin else counts
    try:
        queue = open_queue(args.key)
        for sent, (text, body) in enumerate(itertools.islice(messages, args.count)):
            if sent and args.interval:
                time.sleep(args.interval)
            send(queue, body, not args.no_wait, args.type)
            if not args.quiet:
                common.put(text, timed=True)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.key, error, CURES)
    return 1 if refused else 0


if __name__ == "__main__":
    common.run(main)
