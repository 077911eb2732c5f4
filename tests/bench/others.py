"""The other ways from process to process in Python that `make bench` puts beside the scripts.

others.py messages WAY server|client PATH COUNT [loud]
                             WAY is queue, pipe, socket, seqpacket, zeromq, redis or redis-100
others.py text WAY reader|writer PATH COUNT
                             WAY is shared_memory, mmap, redis, or the scripts' posix or sysv
others.py semaphore WAY PATH COUNT
                             WAY is posix, sysv, flock or multiprocessing
others.py hold WAY PATH      takes a semaphore, prints a line, and keeps it

The messages are the same JSON, and each is decoded and printed as the scripts do it, one write(2)
a message. A `loud` client prints the number of each message when the call that sends it has
returned. A queue and a pipe of multiprocessing have no name: client and server are one program.
"""

import contextlib
import fcntl
import functools
import importlib
import json
import mmap
import multiprocessing
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, shared_memory
from typing import Any

Send = Callable[[bytes], object]
Receive = Callable[[], bytes]
Text = tuple[Callable[[], str], Callable[[str], object]]  # what reads it, and what writes it

decode = json.JSONDecoder().decode  # json.loads() asks for the encoding first
clock = functools.lru_cache(1)(lambda now: time.strftime("%H:%M:%S", time.localtime(now)))


def line(text: str) -> None:
    now, fraction = divmod(time.time_ns(), 10**9)
    os.write(1, f"{clock(now)}.{fraction // 1000:06} {text}\n".encode())


# --- messages


def socket_at(path: str, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a server that was killed
    sock.bind(path)
    return sock


def socket_server(path: str) -> Receive:
    sock = socket_at(path, socket.SOCK_DGRAM)
    os.write(1, b"start\n")
    return functools.partial(sock.recv, 8192)


def socket_client(path: str, kind: int = socket.SOCK_DGRAM) -> Send:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.connect(path)
    return sock.send


def seqpacket_server(path: str) -> Receive:
    """With a connection for each client. There is one here."""
    sock = socket_at(path, socket.SOCK_SEQPACKET)
    sock.listen()
    os.write(1, b"start\n")
    return functools.partial(sock.accept()[0].recv, 8192)


def seqpacket_client(path: str) -> Send:
    return socket_client(path, socket.SOCK_SEQPACKET)


def zeromq_server(path: str) -> Receive:
    import zmq

    sock = zmq.Context.instance().socket(zmq.PULL)
    # With a limit, libzmq stops reading while the server is behind, and when the client ends
    # meanwhile, it closes the connection with what is unread (libzmq, issue 4660). The client's
    # LINGER, which is without end by default, cannot help that.
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.bind(f"ipc://{path}")
    os.write(1, b"start\n")
    return sock.recv


def zeromq_client(path: str) -> Send:
    import zmq

    sock = zmq.Context.instance().socket(zmq.PUSH)
    sock.connect(f"ipc://{path}")
    return sock.send


def redis_at(path: str) -> Callable[..., Any]:
    """A command and its answer, by one connection: redis.Redis would take one from its pool."""
    import redis

    connection = redis.UnixDomainSocketConnection(path=f"{path}.redis", socket_timeout=None)

    def ask_redis(*words: str | bytes | int) -> Any:
        connection.send_command(*words)
        return connection.read_response()

    return ask_redis


def redis_server(path: str) -> Receive:
    ask_redis = redis_at(path)
    os.write(1, b"start\n")
    return lambda: ask_redis("BLPOP", "queue", 0)[1]


def redis_client(path: str) -> Send:
    return functools.partial(redis_at(path), "RPUSH", "queue")


def redis_100_server(path: str) -> Receive:
    """Whatever waits, up to 100 messages a round trip."""
    ask_redis = redis_at(path)

    def bodies() -> Iterator[bytes]:
        while True:
            yield from ask_redis("BLMPOP", 0, 1, "queue", "LEFT", "COUNT", 100)[1]

    os.write(1, b"start\n")
    return bodies().__next__


def redis_100_client(path: str) -> Send:
    """100 messages a round trip: each waits for the hundredth, the last ones for the end."""
    ask_redis = redis_at(path)
    waiting: list[bytes] = []

    def flush() -> None:
        if waiting:
            ask_redis("RPUSH", "queue", *waiting)
            waiting.clear()

    def send(body: bytes) -> None:
        waiting.append(body)
        if len(waiting) == 100:
            flush()

    at_end.append(flush)
    return send


at_end: list[Callable[[], object]] = []  # what a client does when it has no more to send


def serve(receive: Receive, count: int) -> None:
    for _ in range(count):
        line(repr(decode(receive().decode())))


def ask(send: Send, count: int, loud: bool) -> None:
    for number in range(1, count + 1):
        send(json.dumps({"count": number}).encode())
        if loud:
            os.write(2, b"%d\n" % number)
    for finish in at_end:
        finish()
    if loud:
        time.sleep(1000)  # until it is killed: what it sent is all that counts


def one_program(way: str, count: int, loud: bool) -> None:
    """multiprocessing: the server is a child. One more takes its place if it is killed."""
    context = multiprocessing.get_context("fork")
    if way == "queue":
        queue: multiprocessing.Queue[bytes] = context.Queue()
        receive, send = queue.get, queue.put
    else:
        reader, writer = context.Pipe(duplex=False)
        receive, send = reader.recv_bytes, writer.send_bytes
    server = context.Process(target=serve, args=(receive, count))
    server.start()
    if loud:
        os.write(2, b"server %d\n" % server.pid)

        def take_over() -> None:
            connection.wait([server.sentinel])
            serve(receive, count)

        context.Process(target=take_over, daemon=True).start()
    ask(send, count, loud)
    server.join()


def messages(way: str, side: str, path: str, count: str, *loud: str) -> None:
    if way in ("queue", "pipe"):
        one_program(way, int(count), bool(loud))
        return
    made = globals()[f"{way.replace('-', '_')}_{side}"](path)
    if side == "server":
        serve(made, int(count))
    else:
        ask(made, int(count), bool(loud))


# --- the newest text

ROOM = 2**20 + 8


def redis_text(path: str) -> Text:
    ask_redis = redis_at(path)

    def read() -> str:
        return (ask_redis("GET", "text") or b"").decode()

    return read, functools.partial(ask_redis, "SET", "text")


def mmap_text(path: str) -> Text:
    """A file in memory that both map: its length, then the text, under flock(2)."""
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.ftruncate(file, ROOM)
    return mapped_text(mmap.mmap(file, ROOM), *flock_of(file))


def posix_text(name: str) -> Text:
    return script_text("posix", name)


def sysv_text(key: str) -> Text:
    return script_text("sysv", int(key))


def script_text(api: str, thing: object) -> Text:
    """The functions of the two scripts, from the folder that PYTHONPATH names."""
    client = importlib.import_module(f"{api}_shm_client")
    server = importlib.import_module(f"{api}_shm_server")
    segment = server.open_segment(thing)
    return functools.partial(server.read_text, segment), functools.partial(
        client.write_text, segment
    )


def flock_of(file: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """What takes the lock of an open file, and what gives it back."""
    take = functools.partial(fcntl.flock, file, fcntl.LOCK_EX)
    return take, functools.partial(fcntl.flock, file, fcntl.LOCK_UN)


LENGTH = struct.Struct("q")


def mapped_text(
    memory: "mmap.mmap | memoryview", acquire: Callable[[], object], release: Callable[[], object]
) -> Text:
    def read() -> str:
        acquire()
        try:
            (length,) = LENGTH.unpack_from(memory)
            return str(memory[8 : 8 + length], "utf-8")
        finally:
            release()

    def write(text: str) -> None:
        data = text.encode()
        acquire()
        try:
            LENGTH.pack_into(memory, 0, len(data))
            memory[8 : 8 + len(data)] = data
        finally:
            release()

    return read, write


def read_texts(read: Callable[[], str], count: int) -> None:
    os.write(1, b"start\n")
    for _ in range(count):
        line(read())


def write_texts(write: Callable[[str], object]) -> None:
    for text in sys.stdin:
        write(text.rstrip("\n"))


def shared_memory_text(side: str, name: str, count: int) -> None:
    """A lock of multiprocessing has no name: reader and writer are one program."""
    context = multiprocessing.get_context("fork")
    memory = shared_memory.SharedMemory(name, create=True, size=ROOM)
    lock = context.Lock()
    read, write = mapped_text(memory.buf, lock.acquire, lock.release)
    if side == "both":  # one program; a writer that may be killed, and then one reading
        writer = context.Process(target=write_texts, args=(write,))
        writer.start()
        os.write(2, b"writer %d\n" % writer.pid)
        writer.join()
        read_texts(read, count)
    elif side == "reader":
        write("twenty bytes of text")
        read_texts(read, count)
    else:
        write_texts(write)
    memory.unlink()


def text(way: str, side: str, path: str, count: str) -> None:
    if way == "shared_memory":
        shared_memory_text(side, os.path.basename(path), int(count))
        return
    read, write = globals()[f"{way}_text"](path)
    if side == "writer":
        write_texts(write)
    else:
        read_texts(read, int(count))


# --- semaphores


def taker(way: str, path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """What takes it, and what gives it back."""
    if way == "posix":
        import posix_ipc

        named = posix_ipc.Semaphore(path, posix_ipc.O_CREAT, initial_value=1)
        return named.acquire, named.release
    if way == "sysv":
        import sysv_ipc

        try:
            counted = sysv_ipc.Semaphore(int(path), sysv_ipc.IPC_CREX, initial_value=1)
        except sysv_ipc.ExistentialError:
            counted = sysv_ipc.Semaphore(int(path))
        counted.undo = True
        return counted.acquire, counted.release
    if way == "flock":
        file = os.open(path, os.O_CREAT | os.O_RDWR)
        return flock_of(file)
    shared = multiprocessing.get_context("fork").Semaphore(1)
    return shared.acquire, shared.release


def semaphore(way: str, path: str, count: str) -> None:
    """Prints nanoseconds for one acquire and one release."""
    acquire, release = taker(way, path)
    begin = time.perf_counter_ns()
    for _ in range(int(count)):
        acquire()
        release()
    print((time.perf_counter_ns() - begin) / int(count))


def hold(way: str, path: str) -> None:
    """Take it and keep it; multiprocessing in a child that is killed, for it has no name."""
    acquire, _ = taker(way, path)
    if way == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=lambda: (acquire(), os._exit(9)))
        child.start()
        child.join()
        acquire()
    else:
        acquire()
    os.write(1, b"taken\n")
    time.sleep(1000)


if __name__ == "__main__":
    {"messages": messages, "text": text, "semaphore": semaphore, "hold": hold}[sys.argv[1]](
        *sys.argv[2:]
    )
