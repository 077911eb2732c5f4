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

from __future__ import annotations  # macOS has no posix_ipc.MessageQueue to name in a signature

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator

import posix_ipc

import common

CURES = {
    "Permission denied": "`ls -l /dev/mqueue` shows owner and mode",
    "Invalid parameter": "fs.mqueue.msg_max and fs.mqueue.msgsize_max are the limits",
    "number of files open": "or the queue is over RLIMIT_MSGQUEUE (`ulimit -q`)",
    "message is too long": "--max-message-size is set where the queue is made",
    "space for a new queue": "fs.mqueue.queues_max is the limit",
}
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def queue_name(text: str) -> str:
    if text[:1] == "/" and "/" not in text[1:] and 2 <= len(os.fsencode(text)) <= 256:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to 255 bytes without one")


def open_queue(name: str) -> posix_ipc.MessageQueue:
    os.umask(0)  # or mq_open(3) takes the umask off the mode
    return posix_ipc.MessageQueue(name, posix_ipc.O_CREAT, mode=0o600, read=False)


def counts() -> Iterator[tuple[str, bytes]]:
    for count in itertools.count(1):
        value = {"count": count}
        yield repr(value), json.dumps(value).encode()


def lines(name: str, refused: list[int]) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = repr(DECODER.decode(line.decode()))
        except (ValueError, RecursionError):
            refused.append(number)
            print(f"{common.SCRIPT}: {name}: line {number} is not JSON", file=sys.stderr)
        else:
            yield text, line.rstrip(b"\r\n")


def send(queue: posix_ipc.MessageQueue, args: argparse.Namespace) -> int:
    refused: list[int] = []
    messages = lines(args.name, refused) if args.stdin else counts()
    for sent, (text, body) in enumerate(itertools.islice(messages, args.count)):
        if sent and args.interval:
            time.sleep(args.interval)
        if os.fstat(queue.mqd).st_nlink == 0:  # an unlinked queue lives on while it is open
            raise posix_ipc.ExistentialError("the queue was removed")
        queue.send(body, timeout=args.timeout, priority=args.priority)
        if not args.quiet:
            print(common.line(text))
    return 1 if refused else 0


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add = parser.add_argument
    add("-n", "--name", type=queue_name, default="/test", help="of the queue (%(default)s)")
    add("-c", "--count", type=common.integer(0, 10**12), metavar="N", help="of messages (15)")
    add("-i", "--interval", type=common.seconds, metavar="SECONDS", help="between two (1)")
    add("-p", "--priority", type=common.integer(0, 32767), metavar="N", default=0, help="(0)")
    add(
        "-t",
        "--timeout",
        type=common.seconds,
        metavar="SECONDS",
        help="give up when the queue stays full that long (default: wait; 0: do not wait)",
    )
    add("--stdin", action="store_true", help="send each line of standard input, which is JSON")
    add("-q", "--quiet", action="store_true", help="do not print what is sent")
    args = parser.parse_args()
    if args.interval is None:
        args.interval = 0 if args.stdin else 1
    if args.count is None and not args.stdin:
        args.count = 15
    if not posix_ipc.MESSAGE_QUEUES_SUPPORTED:
        raise common.failure(args.name, "this system has no POSIX message queues")
    try:
        return send(open_queue(args.name), args)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    sys.exit(main())
