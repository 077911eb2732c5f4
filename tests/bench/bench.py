"""`make bench`: the scripts measured from outside, beside C and what else Python has for the job.

bench.py [markdown] [--python PATH]... [--scripts LABEL=FOLDER]... [--only PART]... [--rounds N]

Every figure is the median of rounds in which all contestants take turns, on every interpreter and
with every folder of scripts that is asked for. What a way loses when a side is killed is measured
by killing it. Nothing needs root, and nothing is left behind. README.md has the results.
"""

import argparse
import contextlib
import fcntl
import functools
import itertools
import multiprocessing
import os
import platform
import random
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import posix_ipc
import sysv_ipc

HERE = Path(__file__).resolve().parent
ENV = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
NAME = f"/bench-{os.getpid()}"
KEY = str(2**20 + os.getpid() * 256)  # and the next ones, for more servers
OBJECT = {"posix": ["-n", NAME], "sysv": ["-k", KEY]}
APIS = {"posix": "POSIX", "sysv": "System V"}
STOP = {signal.SIGINT, signal.SIGTERM}
folder = Path()  # of this run, set by main()
redis_pid = 0


class Variant(NamedTuple):
    """An interpreter with a folder of scripts: a column of each table."""

    label: str
    python: str
    scripts: Path

    def script(self, api: str, primitive: str, side: str, *args: object) -> list[str]:
        path = self.scripts / f"{api}_{primitive}_{side}.py"
        return [self.python, str(path), *OBJECT[api], *map(str, args)]

    def other(self, *args: object) -> list[str]:
        return [self.python, str(HERE / "others.py"), *map(str, args)]

    def has(self, *modules: str) -> bool:
        return not start([self.python, "-c", f"import {', '.join(modules)}"], stderr=-3).wait()


Measure = Callable[[Variant], float]


class Contestant(NamedTuple):
    measure: Measure
    kind: str = "scripts"  # what it depends on: scripts, python (the interpreter alone) or tool


def start(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
    options = {"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, "env": ENV, **options}
    return subprocess.Popen(argv, **options)


def run(argv: list[str], **options: object) -> float:
    """Seconds that a command takes."""
    begin = time.perf_counter()
    status = start(argv, **options).wait()
    seconds = time.perf_counter() - begin
    assert status == 0, argv
    return seconds


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 seconds in vain"
        time.sleep(0.002)


@contextlib.contextmanager
def serving(argv: list[str], **options: object) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that writes to a file, from its start line on."""
    path = folder / "out"
    with path.open("wb") as file:
        server = start(argv, stdout=file, **options)
    until(lambda: b"\n" in path.read_bytes() or server.poll() is not None)
    yield server, path
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    server.wait()


def take_turns(
    contestants: dict[str, Contestant], variants: list[Variant], rounds: int
) -> dict[str, dict[Variant, float]]:
    """The median of each contestant for each variant; what they share is measured once a round."""
    results: dict[tuple[str, object], list[float]] = {}
    key_of = {
        "scripts": lambda variant: variant,
        "python": lambda variant: variant.python,
        "tool": lambda _: None,
    }
    for _ in range(rounds):
        for name, (measure, kind) in contestants.items():
            done = set()
            for variant in variants:
                key = (name, key_of[kind](variant))
                if key not in done:
                    done.add(key)
                    results.setdefault(key, []).append(measure(variant))
    return {
        name: {v: statistics.median(results[name, key_of[kind](v)]) for v in variants}
        for name, (_, kind) in contestants.items()
    }


def compiled() -> str | None:
    """The peer in C, or nothing where there is no compiler."""
    if not shutil.which("cc"):
        return None
    subprocess.run(["cc", "-O2", "-o", folder / "peer", HERE / "peer.c", "-lrt"], check=True)
    return str(folder / "peer")


def clean(variant: Variant, primitive: str) -> None:
    for api in OBJECT:
        start(variant.script(api, primitive, "server", "--clean")).wait()


@contextlib.contextmanager
def redis(path: Path) -> Iterator[set[str]]:
    """A server of this run's own, without a port and without a file, and the ways that it has."""
    global redis_pid  # noqa: PLW0603
    program = shutil.which("redis-server")
    if not program:
        yield set()
        return
    options = ["--port", "0", "--unixsocket", f"{path}.redis", "--save", "", "--appendonly", "no"]
    server = start([program, *options, "--dir", str(folder)])
    redis_pid = server.pid
    with socket.socket(socket.AF_UNIX) as asking:
        # Its file is there before it listens.
        until(lambda: asking.connect_ex(f"{path}.redis") == 0)
        asking.sendall(b"BLMPOP\r\n")
        old = b"unknown command" in asking.recv(4096)
    yield {"redis"} if old else {"redis", "redis-100"}
    server.terminate()
    server.wait()


# --- tables


def value(text: str, ratio: float | None = None) -> str:
    return text if ratio is None else f"{text} ({ratio:.2f})"


def show_table(heads: list[str], rows: list[list[str]], markdown: bool) -> None:
    print()
    if markdown:
        lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for line in (heads, *rows):
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]))


def show_chart(title: str, bars: dict[str, float], unit: str) -> None:
    print("\n```mermaid\nxychart-beta horizontal")
    print(f'    title "{title}"')
    names = ", ".join(f'"{name}"' for name in bars)
    print(f"    x-axis [{names}]")
    print(f'    y-axis "{unit}"')
    print(f"    bar [{', '.join(f'{number:.0f}' for number in bars.values())}]\n```")


# --- messages

QLEN = Path("/proc/sys/net/unix/max_dgram_qlen")  # how many datagrams wait, at most
qlen = QLEN.read_text().strip() if QLEN.exists() else "unknown"
WAYS = {
    "queue": "multiprocessing.Queue",
    "pipe": "multiprocessing.Pipe",
    "socket": f"Unix datagram socket, max_dgram_qlen {qlen}",
    "seqpacket": "Unix socket, SOCK_SEQPACKET",
    "zeromq": "ZeroMQ PUSH/PULL, ipc://",
    "redis": "Redis list",
    "redis-100": "Redis list, 100 a round trip",
}
NEEDS = {"zeromq": ["zmq"], "redis": ["redis"], "redis-100": ["redis"]}
ONE_PROGRAM = ("queue", "pipe")


def span(lines: list[str]) -> float:
    """Seconds from the first of these lines to the last, by the times in them."""

    def seconds_of(line: str) -> float:
        hours, minutes, seconds = line.partition(" ")[0].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    return (seconds_of(lines[-1]) - seconds_of(lines[0])) % 86400


def timed_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line[2:3] == ":" == line[5:6]]


def rate(server: list[str], client: list[str] | None, count: int) -> float:
    """Messages a second, from the first line that the server prints to the last."""
    with serving(server) as (process, path):
        sender = start(client) if client else None
        process.wait()
        lines = timed_lines(path)
        if sender:
            sender.wait()
    assert len(lines) == count, f"{len(lines)} of {count} messages: {server}"
    return (count - 1) / span(lines)


def pair_rate(variant: Variant, api: str, count: int = 100_000) -> float:
    server = variant.script(api, "msq", "server", "-c", count)
    client = variant.script(api, "msq", "client", "-q", "-i", 0, "-c", count)
    return rate(server, client, count)


def peer_rate(_: Variant, peer: str, api: str, count: int = 200_000) -> float:
    thing = OBJECT[api][1]
    try:
        return rate(
            [peer, api, "server", thing, str(count)],
            [peer, api, "client", thing, str(count)],
            count,
        )
    finally:
        clean(_, "msq")  # it has no start line of its own, and sizes of its own


def other_rate(variant: Variant, way: str) -> float:
    count = 20_000 if way == "redis" else 100_000
    argv = variant.other("messages", way)
    server, client = ([*argv, side, folder / "way", str(count)] for side in ("server", "client"))
    return rate(list(map(str, server)), None if way in ONE_PROGRAM else client, count)


class Killed:
    """What is lost of the messages sent, when a side is killed between two messages of many.

    The server prints into a pipe, which is read here: as fast as can be, or a line a millisecond,
    which makes the server as slow once the pipe is full, and stops no thread of anybody. A side is
    killed, or both are, when a random number of lines has been read; then the server goes on, or a
    new one starts. What counts as sent is what the call that sends it has returned for.
    """

    def __init__(self, variant: Variant, way: str, count: int = 6000) -> None:
        self.count, self.way, self.sent = count, way, folder / "sent"
        if way in APIS:
            self.server_argv = variant.script(way, "msq", "server")
            self.client_argv = variant.script(way, "msq", "client", "--stdin")
        else:
            argv = variant.other("messages", way)
            self.server_argv = [*argv, "server", str(folder / "way"), "1000000"]
            self.client_argv = [*argv, "client", str(folder / "way"), str(count), "loud"]
        self.variant = variant
        self.lines = folder / "lines-counted"
        self.lines.write_text("".join(f'{{"count": {n}}}\n' for n in range(1, count + 1)))

    def start_server(self) -> int:
        self.processes.append(start(self.server_argv, stdout=self.write_end, stderr=-3))
        before = self.out.count(b"start")
        until(lambda: self.read(0.01, 40) and self.out.count(b"start") > before)
        return self.processes[-1].pid

    def read(self, seconds: float, size: int = 65536) -> bool:
        """Read what is there, if something comes in that time."""
        if select_readable(self.read_end, seconds):
            self.out += os.read(self.read_end, size)
            return True
        return False

    def worst(self, victim: str) -> str:
        """Of four times: once with a slow server, and three times with one at full speed."""
        found = [self.lost(victim, slow) for slow in (True, False, False, False)]
        lost, sent, failed = max(found, key=lambda one: one[0])
        return f"{lost:,} of {sent:,}" + ("; the sender fails" if failed else "")

    def lost(self, victim: str, slow: bool) -> tuple[int, int, bool]:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.out = b""
        self.read_end, self.write_end = os.pipe()
        if slow:
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4096)
        one = self.way in ONE_PROGRAM
        server = 0 if one else self.start_server()
        with self.sent.open("wb") as file, self.lines.open("rb") as lines:
            # into `sent` goes a line for each message that the client has sent
            options = {"stdout": file, "stderr": -3} if self.way in APIS else {"stderr": file}
            if one:
                options["stdout"] = self.write_end
            client = start(self.client_argv, stdin=lines, **options)
        self.processes.append(client)
        moment = random.randint(100, 400)
        size = 40 if slow else 65536  # about a line, so that the pipe stays full
        until(lambda: self.read(0.01, size) and b"'count': 1}" in self.out)
        while self.out.count(b"\n") < moment:
            assert self.read(10, size), "no more messages"
            time.sleep(0.001 * slow)
        if one:
            server = int(re.search(r"server (\d+)", self.sent.read_text())[1])
        family = children(client.pid)
        if victim in ("sender", "both"):
            kill(client.pid)
        if victim in ("receiver", "both"):
            kill(server)
        if victim == "both":
            for pid in family:
                kill(pid)
        if victim != "sender" and not one:
            self.start_server()
        while self.read(0.5):
            pass
        sent = set(re.findall(rb"(?m)^(?:.*'count': )?(\d+)\}?$", self.sent.read_bytes()))
        failed = victim == "receiver" and client.poll() not in (None, 0)
        printed = set(re.findall(rb"'count': (\d+)\}", self.out))
        for pid in family:
            kill(pid)
        for process in self.processes:
            process.kill()
            process.wait()
        os.close(self.read_end)
        os.close(self.write_end)
        clean(self.variant, "msq")
        return len(sent - printed), len(sent), failed


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill(pid: int) -> None:
    """Kill it, and wait until it is dead: before that a write of its own may still succeed."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGKILL)
        stat = Path(f"/proc/{pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "ZX")


def ways_here(variants: list[Variant], ways: list[str], of_redis: set[str]) -> list[str]:
    """Those that are installed; a word for each that is not."""
    found = []
    for way in ways:
        lacking = [v.python for v in variants if not v.has(*NEEDS.get(way, ["os"]))]
        if lacking:
            print(f"({way} is left out: {lacking[0]} has no module {NEEDS[way][0]})")
        elif way.startswith("redis") and way not in of_redis:
            why = "this redis-server has no BLMPOP" if of_redis else "there is no redis-server"
            print(f"({way} is left out: {why})")
        else:
            found.append(way)
    return found


def measure_messages(bench: "Bench") -> None:
    with redis(folder / "way") as of_redis:
        contestants = {
            f"C, {title}": Contestant(
                functools.partial(peer_rate, peer=bench.peer, api=api), "tool"
            )
            for api, title in APIS.items()
            if bench.peer
        }
        for api, title in APIS.items():
            contestants[f"the scripts, {title}"] = Contestant(functools.partial(pair_rate, api=api))
        others = ways_here(bench.variants, list(WAYS), of_redis)
        for way in others:
            contestants[WAYS[way]] = Contestant(functools.partial(other_rate, way=way), "python")
        found = take_turns(contestants, bench.variants, bench.rounds)
        losses = {}
        for way in [*APIS, *others]:
            killed = Killed(bench.variants[-1], way)
            name = f"the scripts, {APIS[way]}" if way in APIS else WAYS[way]
            losses[name] = [killed.worst(victim) for victim in ("sender", "receiver", "both")]
    rows = []
    for name, rates in found.items():
        beside = found.get("C, System V" if "System V" in name else "C, POSIX")
        cells = [
            value(f"{number:,.0f}", number / beside[v] if beside else None)
            for v, number in rates.items()
        ]
        rows.append([name, *cells, *losses.get(name, ["", "", ""])])
    heads = [f"messages a second{bench.of_label(v)} (of C)" for v in bench.variants]
    lost = ["lost: sender killed", "lost: receiver killed", "lost: both killed"]
    bench.table(["messages", *heads, *lost], rows)
    if bench.markdown:
        last = bench.variants[-1]
        bars = {name: rates[last] / 1000 for name, rates in found.items()}
        show_chart("messages, in thousands a second", bars, "thousands a second")
    for title in APIS.values():
        name = f"the scripts, {title}"
        if bench.peer:
            bench.reach(f"{title} queue, of the same in C", found[name], found[f"C, {title}"], 0.45)
        for way in others:
            if losses[WAYS[way]][2].startswith(("0 of", "1 of")):
                best = f"{title} queue, of {WAYS[way]}, which keeps messages too"
                bench.reach(best, found[name], found[WAYS[way]], 1)


def delay(variant: Variant, server: list[str] | None, part: float) -> float:
    """From a send to its printed line, one message at a time, in microseconds."""
    argv = server or variant.script("posix", "msq", "server", "-c", 200)
    seconds = []
    read, write = os.pipe()
    process = start(argv, stdout=write)
    os.close(write)
    os.read(read, 100)
    queue = posix_ipc.MessageQueue(NAME, posix_ipc.O_CREAT)
    for number in range(1, 201):
        time.sleep(0.001)  # until the server waits again
        begin = time.perf_counter()
        queue.send(b'{"count": %d}' % number)
        os.read(read, 4096)
        seconds.append(time.perf_counter() - begin)
    queue.close()
    process.wait()
    os.close(read)
    seconds.sort()
    return seconds[int(len(seconds) * part)] * 1e6


def measure_delay(bench: "Bench") -> None:
    rows = []
    for title, part in (("p50", 0.5), ("p99", 0.99)):
        contestants = {"scripts": Contestant(functools.partial(delay, server=None, part=part))}
        if bench.peer:
            server = [bench.peer, "posix", "server", NAME, "200"]
            contestants["C"] = Contestant(
                functools.partial(delay, server=server, part=part), "tool"
            )
        found = take_turns(contestants, bench.variants, bench.rounds)
        beside = found.get("C")
        rows.append([f"delay, {title}", f"{beside[bench.variants[0]]:.0f} us" if beside else ""])
        for v, number in found["scripts"].items():
            rows[-1].append(value(f"{number:.0f} us", number / beside[v] if beside else None))
        if beside and title == "p50":
            bench.reach("delay p50, of the same in C", found["scripts"], beside, 1.4, most=True)
    clean(bench.variants[0], "msq")
    heads = [f"the scripts{bench.of_label(v)} (of C)" for v in bench.variants]
    bench.table(["POSIX queue", "in C", *heads], rows)


def clients_rate(variant: Variant, clients: int, peer: str | None) -> float:
    """Total messages a second, from clients that all send before the server starts and after."""
    count = 200_000 if peer else 40_000
    if peer:
        client = [peer, "posix", "client", NAME, "1000000"]
        server = [peer, "posix", "server", NAME, str(count)]
    else:
        client = variant.script("posix", "msq", "client", "-q", "-i", 0, "-c", 1_000_000)
        server = variant.script("posix", "msq", "server", "-c", count)
    processes = [start(client) for _ in range(clients)]
    for process in processes:
        until(functools.partial(sending, process.pid))
    with serving(server) as (process, path):
        process.wait()
    for process in processes:
        process.kill()
        process.wait()
    clean(variant, "msq")
    return (count - 1) / span(timed_lines(path)[:count])


def sending(pid: int) -> bool:
    """Whether the process waits in mq_timedsend(2), for room in the queue."""
    where = Path(f"/proc/{pid}/wchan").read_text()
    return "mq_timedsend" in where or "wq_sleep" in where


def measure_clients(bench: "Bench") -> None:
    rows = []
    for number in (1, 64):
        turns = {"scripts": Contestant(functools.partial(clients_rate, clients=number, peer=None))}
        if bench.peer:
            turns["C"] = Contestant(
                functools.partial(clients_rate, clients=number, peer=bench.peer), "tool"
            )
        found = take_turns(turns, bench.variants, bench.rounds)
        beside = found.get("C")
        rows.append(
            [str(number), f"{beside[bench.variants[0]]:,.0f}/s" if beside else ""]
            + [
                value(f"{n:,.0f}/s", n / beside[v] if beside else None)
                for v, n in found["scripts"].items()
            ]
        )
    heads = [f"the scripts{bench.of_label(v)} (of C)" for v in bench.variants]
    bench.table(["clients of one POSIX queue", "all in C", *heads], rows)


# --- the newest text

TEXTS = {
    "shared_memory": "multiprocessing.shared_memory and Lock",
    "mmap": "a file that both map, flock",
    "redis": "Redis SET and GET",
}


def reading(variant: Variant, api: str | None, way: str, seconds: float = 1) -> float:
    """Microseconds of CPU for a reading of twenty bytes, each printed."""
    path_or_name = OBJECT[api][1] if api else text_path(way)
    argv = variant.other("text", api or way, "reader", path_or_name, 10**9)
    env = {**ENV, "PYTHONPATH": str(variant.scripts)}
    with serving(argv, stderr=-3, env=env) as (process, path):

        def now() -> tuple[float, int]:
            cpu = cpu_now(process.pid) + (cpu_now(redis_pid) if way == "redis" else 0)
            return cpu, path.read_bytes().count(b"\n")

        until(lambda: now()[1] > 10)  # it has read, and does nothing else from now on
        before, readings = now()
        time.sleep(seconds)
        after, readings_then = now()
    Path(f"/dev/shm{NAME}-shared_memory").unlink(missing_ok=True)
    return (after - before) / (readings_then - readings) * 1e6


def cpu_now(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def cpu_of(argv: list[str], way: str, **options: object) -> float:
    """Seconds of CPU that a command takes, and the server of Redis for it."""

    before = cpu_now(redis_pid) if way == "redis" else 0
    process = start(argv, **options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert status == 0, argv
    after = cpu_now(redis_pid) if way == "redis" else 0
    return usage.ru_utime + usage.ru_stime + after - before


def text_path(way: str) -> str:
    """In memory, as the segment of a script is; /dev/shm is where shared_memory has its own."""
    return f"/dev/shm{NAME}-{way}" if way != "redis" else str(folder / "way")


def writing(variant: Variant, api: str | None, way: str) -> float:
    """Microseconds of CPU for a text of twenty bytes that comes in a line of standard input."""
    count = 20_000 if api or way == "redis" else 200_000  # what is cheap, more often
    path_or_name = OBJECT[api][1] if api else text_path(way)
    argv = variant.other("text", api or way, "writer", path_or_name, 0)
    env = {**ENV, "PYTHONPATH": str(variant.scripts)}
    seconds = []
    for lines in (1, count + 1):
        path = folder / f"lines-{lines}"
        if not path.exists():
            path.write_bytes(b"twenty bytes of text\n" * lines)
        with path.open("rb") as file:
            seconds.append(cpu_of(argv, way, stdin=file, env=env))
    return (seconds[1] - seconds[0]) / count * 1e6


def cut_short(variant: Variant, api: str | None, way: str, kills: int = 50) -> str:
    """What a reader finds after a writer of texts of 1 MiB was killed at a random moment."""
    path = folder / "large"
    if not path.exists():
        path.write_bytes((b"a" * 2**20 + b"\n" + b"b" * 2**20 + b"\n") * 5)
    found: dict[str, int] = {"waits for ever": 0, "shows a mix of two": 0, "says so": 0}
    for _ in range(kills):
        output = folder / "out"
        feeder = start(["cat", *[str(path)] * 1000], stdout=subprocess.PIPE, stderr=-3)
        with feeder.stdout as file, output.open("wb") as out:
            if api:
                writer = start(variant.script(api, "shm", "client", "--size", ROOM), stdin=file)
                reader_argv = variant.script(api, "shm", "server", "-c", 1)
            else:
                side = "both" if way == "shared_memory" else "writer"
                writer = start(
                    variant.other("text", way, side, text_path(way), 1),
                    stdin=file, stdout=out, stderr=(folder / "pid").open("wb"),
                )  # fmt: skip
                reader_argv = variant.other("text", way, "reader", text_path(way), 1)
        victim = writer.pid
        if way == "shared_memory":
            until(lambda: b"\n" in (folder / "pid").read_bytes())
            victim = int((folder / "pid").read_text().split()[1])
        time.sleep(random.uniform(0.1, 0.3))
        kill(victim)
        feeder.kill()
        feeder.wait()
        if way == "shared_memory":
            reader = writer
        else:
            writer.wait()
            reader = start(reader_argv, stdout=output.open("wb"))
        try:
            reader.wait(3)
        except subprocess.TimeoutExpired:
            found["waits for ever"] += 1
        reader.kill()
        reader.wait()
        text = output.read_text()
        found["says so"] += "(incomplete write)" in text
        found["shows a mix of two"] += any("ab" in line or "ba" in line for line in text.split())
        Path(f"/dev/shm{NAME}-shared_memory").unlink(missing_ok=True)
    said = [f"{what}: {number} of {kills}" for what, number in found.items() if number]
    return ", ".join(said) or f"a whole text, {kills} of {kills}"


ROOM = 2**20 + 8


def measure_texts(bench: "Bench") -> None:
    with redis(folder / "way") as of_redis:
        names: dict[str, tuple[str | None, str]] = {
            f"the scripts, {title}": (api, "") for api, title in APIS.items()
        }
        for variant in bench.variants:
            if "def read_text" not in (variant.scripts / "posix_shm_server.py").read_text():
                print(f"(the scripts are left out: {variant.scripts} has no function to read)")
                names.clear()
        names |= {TEXTS[w]: (None, w) for w in ways_here(bench.variants, list(TEXTS), of_redis)}
        tables = []
        for measure in (writing, reading):
            contestants = {
                name: Contestant(functools.partial(measure, api=api, way=way), bench.kind(api))
                for name, (api, way) in names.items()
            }
            tables.append(take_turns(contestants, bench.variants, bench.rounds))
        clean(bench.variants[0], "shm")
        rows = []
        for name, (api, way) in names.items():
            cells = [f"{table[name][v]:.1f} us" for v in bench.variants for table in tables]
            rows.append([name, *cells, cut_short(bench.variants[-1], api, way)])
            clean(bench.variants[0], "shm")
    heads = [
        f"CPU for {what} of 20 bytes{bench.of_label(v)}"
        for v in bench.variants
        for what in ("a write", "a reading")
    ]
    bench.table(["the newest text", *heads, "a reader after 50 writers were killed"], rows)


# --- semaphores

TAKERS = {
    "posix": "posix_ipc",
    "sysv": "sysv_ipc, SEM_UNDO",
    "flock": "fcntl.flock",
    "multiprocessing": "multiprocessing.Semaphore",
}


def taker_path(way: str) -> str:
    return OBJECT[way][1] if way in APIS else str(folder / "lock")


def taking(variant: Variant, way: str) -> float:
    argv = variant.other("semaphore", way, taker_path(way), 200_000)
    return float(subprocess.check_output(argv, env=ENV)) / 1000


def holder_killed(variant: Variant, way: str) -> str:
    """Whether another has it at last, when the one that has it is killed."""
    argv = variant.other("hold", way, taker_path(way))
    process = start(argv, stdout=subprocess.PIPE)
    if way != "multiprocessing":
        process.stdout.readline()
        process.kill()
        process.wait()
        process = start(argv, stdout=subprocess.PIPE)
    got = bool(select_readable(process.stdout, 3))
    process.kill()
    process.wait()
    return "given back" if got else "lost"


def select_readable(file: object, seconds: float) -> object:
    return select.select([file], [], [], seconds)[0]


def command(variant: Variant, way: str, *words: str) -> list[str]:
    if way == "flock(1)":
        return ["flock", "-F", str(folder / "lock"), *words]
    return variant.script(way, "sem", "client", "-w", "--", *words)


def command_killed(variant: Variant, way: str) -> str:
    clean(variant, "sem")
    if way == "posix":
        posix_ipc.Semaphore(NAME, posix_ipc.O_CREX, initial_value=1).close()
    elif way == "sysv":
        sysv_ipc.Semaphore(int(KEY), sysv_ipc.IPC_CREX).release()  # from 0: no opener is too early
    process = start(command(variant, way, "sleep", "1000"))

    def family() -> list[int]:
        return [process.pid, *children(process.pid)]

    until(lambda: any(Path(f"/proc/{p}/comm").read_text() == "sleep\n" for p in family()))
    for pid in family():
        kill(pid)
    process.wait()
    process = start(command(variant, way, "true"), stderr=-3)
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "lost"
    return "given back"


def measure_semaphores(bench: "Bench") -> None:
    contestants = {
        name: Contestant(functools.partial(taking, way=way), "python")
        for way, name in TAKERS.items()
    }
    clean(bench.variants[0], "sem")
    found = take_turns(contestants, bench.variants, bench.rounds)
    rows = []
    for way, name in TAKERS.items():
        cells = [f"{found[name][v]:.2f} us" for v in bench.variants]
        rows.append([name, *cells, holder_killed(bench.variants[-1], way)])
    heads = [f"taken and given back{bench.of_label(v)}" for v in bench.variants]
    bench.table(["in one process", *heads, "its holder is killed"], rows)

    clean(bench.variants[0], "sem")
    ways = {f"{api}_sem_client -w -- true": api for api in APIS}
    locked = ["flock", "-F", str(folder / "lock"), "true"]
    if shutil.which("flock") and not start(locked, stderr=-3).wait():
        ways["flock(1) -F FILE true"] = "flock(1)"
    else:
        print("(flock(1) is left out: there is none with -F)")
    contestants = {
        name: Contestant(lambda v, way=way: run(command(v, way, "true")), bench.kind(way))
        for name, way in ways.items()
    }
    contestants["python -c pass"] = Contestant(lambda v: run([v.python, "-c", "pass"]), "python")
    found = take_turns(contestants, bench.variants, bench.rounds * 3)
    rows = []
    for name in found:
        way = ways.get(name)
        killed = command_killed(bench.variants[-1], way) if way else ""
        rows.append([name, *(f"{found[name][v] * 1e3:.1f} ms" for v in bench.variants), killed])
    heads = [f"takes{bench.of_label(v)}" for v in bench.variants]
    bench.table(["as a command", *heads, "it and its command are killed"], rows)
    clean(bench.variants[0], "sem")


# --- one process


def measure_starts(bench: "Bench") -> None:
    def one_message(variant: Variant, api: str) -> float:
        seconds = run(variant.script(api, "msq", "client", "-q", "-c", 1))
        clean(variant, "msq")
        return seconds

    contestants = {"python -c pass": Contestant(lambda v: run([v.python, "-c", "pass"]), "python")}
    for api in APIS:
        contestants[f"{api}_msq_client -c 1"] = Contestant(functools.partial(one_message, api=api))
        contestants[f"{api}_sem_client -r"] = Contestant(
            lambda v, api=api: run(v.script(api, "sem", "client", "-r"))
        )
        start(bench.variants[0].script(api, "sem", "client")).wait()
    found = take_turns(contestants, bench.variants, bench.rounds * 3)
    clean(bench.variants[0], "sem")
    beside = found["python -c pass"]
    rows = [
        [name, *(value(f"{n * 1e3:.1f} ms", n / beside[v]) for v, n in numbers.items())]
        for name, numbers in found.items()
    ]
    heads = [f"takes{bench.of_label(v)} (of pass)" for v in bench.variants]
    bench.table(["a client that does one thing", *heads], rows)
    for name, numbers in found.items():
        if name != "python -c pass":
            bench.reach(f"{name}, of python -c pass", numbers, beside, 2.2, most=True)


def measure_idle(bench: "Bench", seconds: float = 10) -> None:
    """Wake-ups a second, milliseconds of CPU a second and MiB of memory, with nothing to do."""
    titles = {"python": "a bare interpreter"}
    titles |= {f"{api} {p}": f"{api}_{p}_server" for api in APIS for p in ("msq", "sem")}
    processes = {}
    for index, v in enumerate(bench.variants):
        sleeping = [v.python, "-c", "import time; time.sleep(1000)"]
        for name in titles:
            argv = v.script(*name.split(), "server") if name != "python" else sleeping
            if name != "python":  # each variant has objects of its own
                argv[3] = f"{NAME}-{index}" if name.startswith("posix") else str(int(KEY) + index)
            processes[name, v] = (start(argv), argv)
    time.sleep(1)

    def now(pid: int) -> tuple[float, float, float]:
        status = Path(f"/proc/{pid}/status").read_text()
        switches = re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        cpu = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
        return float(switches[1]), float(cpu) / 1e6, float(memory[1]) / 1024

    before = {key: now(process.pid) for key, (process, _) in processes.items()}
    time.sleep(seconds)
    found = {}
    for key, (process, argv) in processes.items():
        then = now(process.pid)
        found[key] = [(b - a) / seconds for a, b in zip(before[key], then, strict=True)][:2]
        found[key].append(then[2])
        process.kill()
        process.wait()
        if key[0] != "python":
            start([*argv, "--clean"]).wait()
    rows = []
    for name, title in titles.items():
        row = [title]
        for v in bench.variants:
            wakes, cpu, memory = found[name, v]
            bare = found["python", v][2]
            row += [value(f"{memory:.1f} MiB", memory / bare), f"{wakes:.1f}/s", f"{cpu:.2f} ms/s"]
        rows.append(row)
    whats = ("memory", "wake-ups", "CPU")
    heads = [f"{what}{bench.of_label(v)}" for v in bench.variants for what in whats]
    bench.table(["with nothing to do", *heads], rows)


# --- whether it stays so


def message_cost(variant: Variant, count: int, size: int) -> float:
    """Microseconds a message: {"count": 1} and so on, or of that size."""
    client = variant.script("posix", "msq", "client", "-q", "-i", 0, "-c", count)
    body = folder / "lines"
    body.write_text(('"' + "x" * (size - 2) + '"\n') * (count if size else 0))
    with serving(variant.script("posix", "msq", "server", "-c", count)) as (process, path):
        with body.open("rb") as file:
            sender = start([*client, "--stdin"] if size else client, stdin=file)
        process.wait()
        sender.wait()
        return span(timed_lines(path)) / (count - 1) * 1e6


def long_run(variant: Variant, count: int = 1_000_000) -> float:
    """The last fifth of a long run, in times of the first."""
    with serving(variant.script("posix", "msq", "server", "-c", count)) as (process, path):
        start(variant.script("posix", "msq", "client", "-q", "-i", 0, "-c", count))
        process.wait()
        lines = timed_lines(path)
    fifth = count // 5
    return span(lines[-fifth:]) / span(lines[:fifth])


def large_segment(variant: Variant, size: int) -> float:
    """Microseconds for a reading of twenty bytes in a segment of that size."""
    path = folder / "short"
    path.write_bytes(b"twenty bytes of text\n")
    with path.open("rb") as file:
        run(variant.script("posix", "shm", "client", "--size", size), stdin=file)
    microseconds = reading(variant, "posix", "")
    clean(variant, "shm")
    return microseconds


def measure_sizes(bench: "Bench") -> None:
    contestants = {
        "a message of 12 bytes": Contestant(functools.partial(message_cost, count=20_000, size=12)),
        "a message of 4,096 bytes": Contestant(
            functools.partial(message_cost, count=20_000, size=4096)
        ),
        "a message of 8,192 bytes": Contestant(
            functools.partial(message_cost, count=20_000, size=8192)
        ),
        "a reading of 20 bytes in 4 KiB": Contestant(functools.partial(large_segment, size=4096)),
        "a reading of 20 bytes in 1 GiB": Contestant(functools.partial(large_segment, size=2**30)),
    }
    found = take_turns(contestants, bench.variants, bench.rounds)
    rows = [[n, *(f"{number:.1f} us" for number in row.values())] for n, row in found.items()]
    long = take_turns({"long": Contestant(long_run)}, bench.variants, 1)["long"]
    rows.append(
        ["the last 200,000 of a million, of the first", *(f"{n:.2f}" for n in long.values())]
    )
    clean(bench.variants[0], "msq")
    bench.table(["POSIX", *(f"costs{bench.of_label(v)}" for v in bench.variants)], rows)


# --- the whole

PARTS: dict[str, Callable[["Bench"], None]] = {
    "messages": measure_messages,
    "delay": measure_delay,
    "clients": measure_clients,
    "texts": measure_texts,
    "semaphores": measure_semaphores,
    "starts": measure_starts,
    "idle": measure_idle,
    "sizes": measure_sizes,
}


class Bench:
    def __init__(self, variants: list[Variant], rounds: int, markdown: bool) -> None:
        self.variants, self.rounds, self.markdown = variants, rounds, markdown
        self.peer = compiled()
        self.reached: list[list[str]] = []

    def of_label(self, variant: Variant) -> str:
        return f", {variant.label}" if len(self.variants) > 1 else ""

    @staticmethod
    def kind(way: str | None) -> str:
        return {None: "python", "flock(1)": "tool"}.get(way, "scripts")

    def table(self, heads: list[str], rows: list[list[str]]) -> None:
        show_table(heads, rows, self.markdown)

    def reach(
        self,
        what: str,
        found: dict[Variant, float],
        beside: dict[Variant, float],
        goal: float,
        most: bool = False,
    ) -> None:
        ratios = {v: found[v] / beside[v] for v in self.variants}
        cells = []
        for ratio in ratios.values():
            good = ratio <= goal if most else ratio >= goal
            cells.append(f"{ratio:.2f}, {'yes' if good else 'NO'}")
        self.reached.append([what, f"at {'most' if most else 'least'} {goal}", *cells])

    def run(self, parts: list[str]) -> None:
        """Measure, and print as it goes: in a process group that ends as one."""
        load = os.getloadavg()[0]
        print(
            f"Linux {platform.release()}, {os.cpu_count()} cores (load {load:.1f} before), "
            f"{', '.join(v.label for v in self.variants)}; medians of {self.rounds} rounds"
        )
        try:
            posix_ipc.MessageQueue(NAME, posix_ipc.O_CREX).close()
            posix_ipc.unlink_message_queue(NAME)
        except (
            OSError,
            posix_ipc.Error,
        ) as error:  # others may have as many as RLIMIT_MSGQUEUE lets
            sys.exit(f"bench: no POSIX queue can be made: {error} (`ulimit -q`)")
        if not self.peer:
            print("(no C compiler, so nothing beside C)")
        for part in parts:
            PARTS[part](self)
        if self.reached:
            heads = [f"reached{self.of_label(v)}" for v in self.variants]
            self.table(["ratio", "to reach", *heads], self.reached)


def work(variants: list[Variant], parts: list[str], rounds: int, markdown: bool) -> None:
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    Bench(variants, rounds, markdown).run(parts)


def version(python: str) -> str:
    text = subprocess.check_output(
        [python, "-c", "import platform as p; print(p.python_version())"]
    )
    return f"Python {text.decode().strip()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("format", nargs="?", choices=["markdown"], help="print tables for a page")
    add("--python", action="append", metavar="PATH", help="an interpreter with both packages")
    add("--scripts", action="append", metavar="LABEL=FOLDER", help="scripts, such as older ones")
    add("--only", action="append", choices=PARTS, help="measure only that part")
    add("--rounds", type=int, default=5, help="how many rounds (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    global folder  # noqa: PLW0603
    sys.stdout.reconfigure(line_buffering=True)
    args = arguments()
    folders = [
        text.split("=", 1) for text in args.scripts or [f"={HERE.parent.parent / 'scripts'}"]
    ]
    variants = []
    for python, (label, path) in itertools.product(args.python or [sys.executable], folders):
        try:
            variants.append(Variant(f"{version(python)} {label}".strip(), python, Path(path)))
        except (OSError, subprocess.SubprocessError) as error:
            wanted = "not a Python with posix_ipc and sysv_ipc"
            print(f"bench: {python}: {wanted}: {type(error).__name__}", file=sys.stderr)
            return 1
    noted: list[int] = []
    with tempfile.TemporaryDirectory(prefix=f"{NAME[1:]}-") as path:
        folder = Path(path)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # until there is a group to end
        worker = multiprocessing.get_context("fork").Process(
            target=work,
            args=(variants, args.only or list(PARTS), args.rounds, args.format == "markdown"),
        )
        worker.start()
        os.setpgid(worker.pid, worker.pid)

        def end(number: int, _frame: object) -> None:
            noted.append(number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)

        for number in STOP:
            signal.signal(number, end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        worker.join()
        if not noted and worker.exitcode < 0:
            print(f"bench: ended by {signal.Signals(-worker.exitcode).name}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # what a worker that failed has left
        for index, api, primitive in itertools.product(
            range(-1, len(variants)), OBJECT, ("msq", "shm", "sem")
        ):
            argv = variants[0].script(api, primitive, "server", "--clean")
            if index >= 0:
                argv[3] = f"{NAME}-{index}" if api == "posix" else str(int(KEY) + index)
            start(argv, start_new_session=True).wait()
        for thing in Path("/dev/shm").glob(f"{NAME[1:]}-*"):
            thing.unlink()
    return 128 + noted[0] if noted else worker.exitcode or 0


if __name__ == "__main__":
    sys.exit(main())
