"""POSIX message queue, the client: sends {"count": 1}, {"count": 2}, ... or lines of JSON.

    posix_msq_client.py                             15 messages, one a second
    posix_msq_client.py -c 1 -p 9 -t 0              one, ahead of the others, if there is room
    echo '["any", "JSON"]' | posix_msq_client.py --stdin

Shows mq_open(3), mq_timedsend(3), priorities, and what to do about a full queue.
Read mq_overview(7), then posix_msq_server.py; sysv_msq_client.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import os
import time

import posix_ipc


# --- the queue: these functions work in any program
def open_queue(name: str, mode: int = 0o600) -> "posix_ipc.MessageQueue":  # macOS has no such type
    """Make the queue, or open the one that is there, to send to it. The mode is a new queue's.
    Raises posix_ipc.PermissionsError, and ValueError for a name without a slash."""
    for _ in range(10000):  # make it, or open it: again, when it is removed in between
        with contextlib.suppress(posix_ipc.ExistentialError):  # if it is there
            queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, mode, read=False)
            os.fchmod(queue.mqd, mode)  # mq_open(3) takes the umask off the mode
            return queue
        with contextlib.suppress(posix_ipc.ExistentialError):  # if somebody has just removed it
            return posix_ipc.MessageQueue(name, read=False)
    raise posix_ipc.ExistentialError("No queue exists with the specified name")  # it is "/"


def send(
    queue: "posix_ipc.MessageQueue", body: bytes, timeout: float | None = None, priority: int = 0
) -> None:
    """Send a message; while the queue is full, wait that many seconds (None: for ever). The highest
    priority, of 0 to 32767, is received first.

    Raises posix_ipc.BusyError when it stays full, ValueError when the message is too long, and
    posix_ipc.ExistentialError when the queue was removed. Works in any thread. posix_ipc
    drops what a signal handler raises (but KeyboardInterrupt), and the wait goes on: where one
    notes a stop, send with a timeout, and look between two tries.
    """
    end = time.monotonic() + (1e9 if timeout is None else timeout)  # 1e9: thirty years
    while True:
        if os.fstat(queue.mqd).st_nlink == 0:  # an unlinked queue lives on while it is open
            raise posix_ipc.ExistentialError("the queue was removed")
        patience = max(0, min(end - time.monotonic(), 4))  # a removal wakes nobody
        try:
            queue.send(body, patience, priority)
            return
        except (posix_ipc.BusyError, posix_ipc.SignalError):  # or a handler has run
            if time.monotonic() >= end:
                raise posix_ipc.BusyError("The queue is full") from None


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
    "permission": "`ls -l /dev/mqueue` shows owner and mode",
    "invalid parameter": "fs.mqueue.msg_max and fs.mqueue.msgsize_max are the limits",
    "number of files open": "or the queue is over RLIMIT_MSGQUEUE (`ulimit -q`)",
    "message is too long": "--max-message-size is set where the queue is made",
    "space for a new queue": "fs.mqueue.queues_max is the limit",
}
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def lines(name: str, refused: list[int]) -> Iterator[tuple[str, bytes]]:
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
            common.complain(name, f"line {number} is not JSON{hint}")
        else:
            yield text, line.rstrip(b"\r\n")


def main() -> int:
    parser = common.Parser(description=__doc__)
    add = parser.add_argument
    priority = "the higher one is received first (default: 0, at most 32767)"
    patience = "give up when the queue stays full so long (default: wait; 0: do not)"
    add("-n", "--name", type=common.name, default="/test", help="use this name (default: /test)")
    add("-c", "--count", type=common.count, metavar="N", help="send N messages (default: 15)")
    add("-i", "--interval", type=common.seconds, help="seconds between two messages (default: 1)")
    add("-p", "--priority", type=common.number("0", "32767"), default=0, metavar="N", help=priority)
    add("-t", "--timeout", type=common.seconds, metavar="SECONDS", help=patience)
    add("--stdin", action="store_true", help="send each line of standard input, which is JSON")
    add("-q", "--quiet", action="store_true", help="do not print what is sent")
    args = parser.parse_args()
    if args.interval is None:
        args.interval = 0 if args.stdin else 1
    if args.count is None and not args.stdin:
        args.count = 15
    if not posix_ipc.MESSAGE_QUEUES_SUPPORTED:
        return common.complain(args.name, "this system has no POSIX message queues")
    refused: list[int] = []
    counts = ((repr({"count": n}), json.dumps({"count": n}).encode()) for n in itertools.count(1))
    messages = lines(args.name, refused) if args.stdin else counts
    try:
        queue = open_queue(args.name)
        for sent, (text, body) in enumerate(itertools.islice(messages, args.count)):
            if sent and args.interval:
                time.sleep(args.interval)
            send(queue, body, args.timeout, args.priority)
            if not args.quiet:
                common.put(text, timed=True)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.name, error, CURES)
    return 1 if refused else 0


if __name__ == "__main__":
    common.run(main)
