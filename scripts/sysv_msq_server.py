"""System V message queue, the server: prints every message sent to the queue.

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

import argparse
import contextlib
import json
import os
import sys

import sysv_ipc

import common

CURES = {
    "Permission denied": "`ipcs -q` shows owner and mode",
    "system limit": "kernel.msgmni is the limit",
}
KEY = common.integer(1, 2**31 - 1, 0)  # 0 is IPC_PRIVATE, a new object at every open
DECODER = json.JSONDecoder(parse_constant=int)  # int("NaN") raises: NaN is not JSON


def open_queue(args: argparse.Namespace) -> sysv_ipc.MessageQueue:
    mode = 0o600 if args.mode is None else args.mode
    with contextlib.suppress(sysv_ipc.ExistentialError):  # it is there
        sysv_ipc.MessageQueue(args.key, sysv_ipc.IPC_CREX, mode=mode)
    # msgget(2) checks the permissions in mode, so ask for no more than is needed.
    queue = sysv_ipc.MessageQueue(args.key, mode=0o400)
    # A message longer than the buffer of msgrcv(2) stays in the queue for good; none is longer
    # than msg_qbytes.
    queue = sysv_ipc.MessageQueue(args.key, mode=0o400, max_message_size=queue.max_size)
    # A creator (cuid) keeps all rights, even when he has given the object away (uid).
    if others := {queue.uid, queue.cuid} - {(me := os.geteuid())}:
        raise common.failure(args.key, f"belongs to uid {min(others)}, not to uid {me}")
    common.compare(args.key, "--mode", args.mode, queue.mode & 0o777, "o")
    return queue


def show(body: bytes, as_json: bool) -> None:
    body = body.rstrip(b"\0")  # C programs send the NUL that ends a string
    try:
        value = DECODER.decode(body.decode())
        text = json.dumps(value, allow_nan=False) if as_json else common.line(repr(value))
        sys.stdout.write(f"{text}\n")  # one write(2), where print() needs more time for it
    except (ValueError, RecursionError):
        print(common.line(repr(body)), file=sys.stderr if as_json else sys.stdout)


def serve(queue: sysv_ipc.MessageQueue, args: argparse.Namespace) -> None:
    noted = common.note_signals()
    out = sys.stderr if args.json else sys.stdout
    print(f"start message queue server: {args.key}", file=out)
    common.ready()
    received = 0
    while received != args.count and not noted & common.STOP:
        try:
            body, _type = queue.receive(type=args.type)
        except sysv_ipc.Error as error:
            if type(error) is not sysv_ipc.Error:  # EINTR has no class of its own
                raise
            continue
        received += 1
        show(body, args.json)
    print(f"end message queue server: {args.key}", file=out)


def clean(key: int) -> None:
    try:
        sysv_ipc.MessageQueue(key, mode=0).remove()
        print(f"removed {key}")
    except sysv_ipc.ExistentialError:
        print(f"nothing to remove: {key}")


def main() -> None:
    parser = argparse.ArgumentParser(common.SCRIPT, description=__doc__, formatter_class=common.raw)
    add, number = parser.add_argument, common.integer(-(2**31 - 1), 2**31 - 1)
    add("-k", "--key", type=KEY, default=200, help="of the queue (%(default)s)")
    add("-c", "--count", type=common.integer(0, 10**12), metavar="N", help="stop after N messages")
    add("--json", action="store_true", help="write messages as JSON, all else to standard error")
    add(
        "--type",
        type=number,
        default=0,
        metavar="N",
        help="0: all (the default), N: that type, -N: the lowest type up to N",
    )
    add("--mode", type=common.integer(0, 0o777, 8), metavar="OCTAL", help="of a new queue (600)")
    add("--clean", action="store_true", help="remove the queue and exit")
    args = parser.parse_args()
    try:
        clean(args.key) if args.clean else serve(open_queue(args), args)
    except (sysv_ipc.Error, OSError, ValueError, MemoryError) as error:
        raise common.failure(args.key, error, CURES) from error


if __name__ == "__main__":
    main()
