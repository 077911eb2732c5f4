"""POSIX message queue, the server: prints every message that is sent to the queue.

    posix_msq_server.py           in one terminal (Ctrl-C ends it), posix_msq_client.py in another
    posix_msq_server.py --clean   removes the queue

Shows mq_open(3), mq_receive(3), mq_unlink(3), and how to stop without losing a message.
Read mq_overview(7), then posix_msq_client.py; sysv_msq_server.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///
import contextlib
import os
import time
from collections.abc import Iterator, Sized

import posix_ipc


# --- the queue: these functions work in any program
def open_queue(
    name: str, mode: int = 0o600, max_messages: int = 10, max_message_size: int = 8192
) -> "posix_ipc.MessageQueue":  # in quotation marks, for macOS has no such type
    """Make the queue, or open the one that is there, to receive from it. The mode and the limits
    (the size in bytes) are a new one's. Raises PermissionError, or posix_ipc.PermissionsError, for
    another user's queue, ValueError for a limit that is over the system's."""
    limits = max_messages, max_message_size
    for _ in range(10000):  # make it, or open it: again, when it is removed in between
        with contextlib.suppress(posix_ipc.ExistentialError):  # if it is there
            queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, mode, *limits, write=False)
            os.fchmod(queue.mqd, mode)  # mq_open(3) takes the umask off the mode
            return queue
        with contextlib.suppress(posix_ipc.ExistentialError):  # if somebody has just removed it
            queue = posix_ipc.MessageQueue(name, write=False)
            owner = os.fstat(queue.mqd).st_uid  # on Linux the descriptor is that of a file
            if owner != os.geteuid():
                queue.close()
                raise PermissionError(f"belongs to uid {owner}, not to uid {os.geteuid()}")
            return queue
    raise posix_ipc.ExistentialError("No queue exists with the specified name")  # it is "/"


def messages(queue: "posix_ipc.MessageQueue", stop: Sized) -> Iterator[bytes]:
    """Yield the body of each message, until `stop` has something in it. Works in any thread.

    A signal handler may put it there, but must not raise: posix_ipc drops what is raised in the
    wait (but KeyboardInterrupt), and a message that has just been taken off the queue would be
    lost. Raises posix_ipc.ExistentialError when the queue was removed."""
    looked = 0.0
    while not stop:
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            if os.fstat(queue.mqd).st_nlink == 0:  # an unlinked queue lives on while it is open
                raise posix_ipc.ExistentialError("the queue was removed")
        try:
            # The limit is for a signal that comes just before the wait, and so does not end it.
            body, _priority = queue.receive(0.9)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            continue
        yield body


# --- the command line
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # till stop_signals(), Ctrl-C ends it
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # also for `python -P`

import common
import itertools
import json

CURES = {
    "permission": "`ls -l /dev/mqueue` shows owner and mode",
    "invalid parameter": "fs.mqueue.msg_max and fs.mqueue.msgsize_max are the limits",
    "number of files open": "or the queue is over RLIMIT_MSGQUEUE (`ulimit -q`)",
    "space for a new queue": "fs.mqueue.queues_max is the limit",
}
ENDS = (posix_ipc.ExistentialError, common.OutputError, MemoryError)
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
    add("-n", "--name", type=common.name, default="/test", help="use this name (default: /test)")
    add("-c", "--count", type=common.count, metavar="N", help="stop after N messages (else never)")
    add("--json", action="store_true", help="print only JSON; the rest goes to standard error")
    add("--mode", type=common.mode, metavar="OCTAL", help="mode of a new queue (default: 600)")
    add("--max-messages", type=common.natural, metavar="N", help="of a new queue (default: 10)")
    how_long = "the longest message of a new queue (default: 8192)"
    add("--max-message-size", type=common.natural, metavar="BYTES", help=how_long)
    add("--clean", action="store_true", help="remove the queue and exit")
    args = parser.parse_args()
    if not posix_ipc.MESSAGE_QUEUES_SUPPORTED:
        return common.complain(args.name, "this system has no POSIX message queues")
    mode = 0o600 if args.mode is None else args.mode
    try:
        if args.clean:
            done = "nothing to remove:"
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_message_queue(args.name)
                done = "removed"
            common.put(f"{done} {args.name}")
            return 0
        stop = common.stop_signals()  # before a signal can part making and mode
        queue = open_queue(args.name, mode, args.max_messages or 10, args.max_message_size or 8192)
        common.compare(args.name, "--mode is", args.mode, os.fstat(queue.mqd).st_mode & 0o777, "o")
        common.compare(args.name, "--max-messages is", args.max_messages, queue.max_messages)
        longest = args.max_message_size
        common.compare(args.name, "--max-message-size is", longest, queue.max_message_size)
        common.ready(f"start message queue server: {args.name}", to=2 if args.json else 1)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        return common.complain(args.name, error, CURES)
    try:
        for body in itertools.islice(messages(queue, stop), args.count):
            show(body, args.json)
        common.put(f"end message queue server: {args.name}", to=2 if args.json else 1)
    except ENDS as error:  # what ends the loop, and is no error of your work
        return common.complain(args.name, error, CURES)
    return 0


if __name__ == "__main__":
    common.run(main)
