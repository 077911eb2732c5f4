"""POSIX message queue, the server: prints every message sent to the queue.

    posix_msq_server.py             in one terminal (Ctrl-C ends it), and in another
    posix_msq_client.py             which sends messages
    posix_msq_server.py --clean     removes the queue

Shows mq_open(3), mq_receive(3), mq_unlink(3), and how to stop without losing a message.
Read mq_overview(7), then posix_msq_client.py; sysv_msq_server.py is its System V twin.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["posix-ipc>=1.3.2"]
# ///

from __future__ import annotations  # macOS has no posix_ipc.MessageQueue to name in a signature

import argparse
import json
import os
import signal
import sys

import posix_ipc

import common

CURES = {
    "Permission denied": "`ls -l /dev/mqueue` shows owner and mode",
    "Invalid parameter": "fs.mqueue.msg_max and fs.mqueue.msgsize_max are the limits",
    "number of files open": "or the queue is over RLIMIT_MSGQUEUE (`ulimit -q`)",
    "space for a new queue": "fs.mqueue.queues_max is the limit",
}
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def queue_name(text: str) -> str:
    if text[:1] == "/" and "/" not in text[1:] and 2 <= len(os.fsencode(text)) <= 256:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a slash and 1 to 255 bytes without one")


def open_queue(args: argparse.Namespace) -> posix_ipc.MessageQueue:
    os.umask(0)  # or mq_open(3) takes the umask off the mode
    queue = posix_ipc.MessageQueue(
        args.name,
        posix_ipc.O_CREAT,
        mode=0o600 if args.mode is None else args.mode,
        max_messages=args.max_messages or posix_ipc.QUEUE_MESSAGES_MAX_DEFAULT,
        max_message_size=args.max_message_size or posix_ipc.QUEUE_MESSAGE_SIZE_MAX_DEFAULT,
        write=False,
    )
    stat = os.fstat(queue.mqd)  # on Linux the descriptor of a queue is a file descriptor
    if stat.st_uid != os.geteuid():
        raise common.failure(args.name, f"belongs to uid {stat.st_uid}, not to uid {os.geteuid()}")
    common.compare(args.name, "--mode", args.mode, stat.st_mode & 0o777, "o")
    common.compare(args.name, "--max-messages", args.max_messages, queue.max_messages)
    common.compare(args.name, "--max-message-size", args.max_message_size, queue.max_message_size)
    return queue


def show(body: bytes, as_json: bool) -> None:
    body = body.rstrip(b"\0")  # C programs send the NUL that ends a string
    try:
        value = DECODER.decode(body.decode())
        text = json.dumps(value, allow_nan=False) if as_json else common.line(repr(value))
        sys.stdout.write(f"{text}\n")  # one write(2), where print() needs more time for it
    except (ValueError, RecursionError):
        print(common.line(repr(body)), file=sys.stderr if as_json else sys.stdout)


def serve(queue: posix_ipc.MessageQueue, args: argparse.Namespace) -> None:
    noted = common.note_signals()
    out = sys.stderr if args.json else sys.stdout
    print(f"start message queue server: {args.name}", file=out)
    common.ready()
    received = 0
    while received != args.count and not noted & common.STOP:
        if signal.SIGALRM in noted:  # about once a second
            noted.discard(signal.SIGALRM)
            if os.fstat(queue.mqd).st_nlink == 0:  # an unlinked queue lives on while it is open
                raise common.failure(args.name, "the queue was removed")
        try:
            body, _priority = queue.receive()
        except posix_ipc.SignalError:
            continue
        received += 1
        show(body, args.json)
    print(f"end message queue server: {args.name}", file=out)


def clean(name: str) -> None:
    try:
        posix_ipc.unlink_message_queue(name)
        print(f"removed {name}")
    except posix_ipc.ExistentialError:
        print(f"nothing to remove: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, number = parser.add_argument, common.integer(1, 2**31 - 1)
    add("-n", "--name", type=queue_name, default="/test", help="of the queue (%(default)s)")
    add("-c", "--count", type=common.integer(0, 10**12), metavar="N", help="stop after N messages")
    add("--json", action="store_true", help="write messages as JSON, all else to standard error")
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new queue (600)")
    add("--max-messages", type=number, metavar="N", help="of a new queue (10)")
    add("--max-message-size", type=number, metavar="BYTES", help="of a new queue (8192)")
    add("--clean", action="store_true", help="remove the queue and exit")
    args = parser.parse_args()
    if not posix_ipc.MESSAGE_QUEUES_SUPPORTED:
        raise common.failure(args.name, "this system has no POSIX message queues")
    try:
        clean(args.name) if args.clean else serve(open_queue(args), args)
    except (posix_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.name, error, CURES) from error


if __name__ == "__main__":
    main()
