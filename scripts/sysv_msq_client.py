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

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator

import sysv_ipc

import common

CURES = {
    "Permission denied": "`ipcs -q` shows owner and mode",
    "queue is full": "kernel.msgmnb is the limit of a new queue",
    "system limit": "kernel.msgmni is the limit",
    "Invalid argument": "kernel.msgmax is the limit of a message",
    "msg_qbytes": "kernel.msgmnb is the limit of a new queue",
}
KEY = common.integer(1, 2**31 - 1, 0)  # 0 is IPC_PRIVATE, a new object at every open
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def open_queue(key: int) -> sysv_ipc.MessageQueue:
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, mode=0o600)
    # msgget(2) checks the permissions in mode, so ask for no more than is needed. The package has
    # a limit of 2048 bytes on a message; leave that to msgsnd(2).
    return sysv_ipc.MessageQueue(key, mode=0o200, max_message_size=2**31 - 1)


def counts() -> Iterator[tuple[str, bytes]]:
    for count in itertools.count(1):
        value = {"count": count}
        yield repr(value), json.dumps(value).encode()


def lines(key: int, refused: list[int]) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = repr(DECODER.decode(line.decode()))
        except (ValueError, RecursionError):
            refused.append(number)
            print(f"{common.SCRIPT}: {key}: line {number} is not JSON", file=sys.stderr)
        else:
            yield text, line.rstrip(b"\r\n")


def send(queue: sysv_ipc.MessageQueue, args: argparse.Namespace) -> int:
    limit = sys.maxsize
    with contextlib.suppress(sysv_ipc.PermissionsError):  # msgctl(2) asks for read permission
        limit = queue.max_size
    refused: list[int] = []
    messages = lines(args.key, refused) if args.stdin else counts()
    for sent, (text, body) in enumerate(itertools.islice(messages, args.count)):
        if sent and args.interval:
            time.sleep(args.interval)
        if len(body) > limit:  # msgsnd(2) would wait for ever
            raise ValueError(f"{len(body)} bytes are more than msg_qbytes, {limit}")
        queue.send(body, block=not args.no_wait, type=args.type)
        if not args.quiet:
            print(common.line(text))
    return 1 if refused else 0


def main() -> int:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add = parser.add_argument
    add("-k", "--key", type=KEY, default=200, help="of the queue (%(default)s)")
    add("-c", "--count", type=common.integer(0, 10**12), metavar="N", help="of messages (15)")
    add("-i", "--interval", type=common.seconds, metavar="SECONDS", help="between two (1)")
    add("--type", type=common.integer(1, 2**31 - 1), metavar="N", default=1, help="(1)")
    add("--no-wait", action="store_true", help="fail when the queue is full")
    add("--stdin", action="store_true", help="send each line of standard input, which is JSON")
    add("-q", "--quiet", action="store_true", help="do not print what is sent")
    args = parser.parse_args()
    if args.interval is None:
        args.interval = 0 if args.stdin else 1
    if args.count is None and not args.stdin:
        args.count = 15
    try:
        return send(open_queue(args.key), args)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    sys.exit(main())
