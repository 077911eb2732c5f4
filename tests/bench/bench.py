"""`make bench`: the scripts measured from outside, beside C and others, as ratios of one run.

Every figure is the median of rounds in which the contestants take turns. Nothing needs root, and
nothing is left behind. FORMAT=markdown prints the table for the README.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import posix_ipc

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent.parent / "scripts"
PYTHON = sys.executable
ROUNDS = 5
COUNT = 100_000
ENV = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

NAME = f"/bench-{os.getpid()}"
KEY = str(random.randrange(2**20, 2**31 - 1))
OBJECT = {"posix": ["-n", NAME], "sysv": ["-k", KEY]}
folder = Path()  # of this run, set by main()
STOP = {signal.SIGINT, signal.SIGTERM}


def script(api: str, primitive: str, side: str, *args: object) -> list[str]:
    path = SCRIPTS / f"{api}_{primitive}_{side}.py"
    return [PYTHON, str(path), *OBJECT[api], *map(str, args)]


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


@contextlib.contextmanager
def serving(argv: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that writes to a file, from its start line on."""
    path = folder / "out"
    with path.open("wb") as file:
        server = start(argv, stdout=file)
    while b"\n" not in path.read_bytes():
        time.sleep(0.001)
    yield server, path
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        server.wait()


def compiled() -> str | None:
    """The peer in C, or nothing where there is no compiler."""
    if not shutil.which("cc"):
        return None
    subprocess.run(["cc", "-O2", "-o", folder / "peer", HERE / "peer.c", "-lrt"], check=True)
    return str(folder / "peer")


def take_turns(
    contestants: dict[str, Callable[[], float]], rounds: int = ROUNDS
) -> dict[str, float]:
    """The median of each contestant."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            results[name].append(measure())
    return {name: statistics.median(values) for name, values in results.items()}


# --- what is measured


def message_rate(server: list[str], client: list[str], count: int = COUNT) -> float:
    """Messages a second, until the server has printed the last."""
    with serving(server) as (process, _):
        begin = time.perf_counter()
        start(client)
        process.wait()
        return count / (time.perf_counter() - begin)


def pair_rate(api: str, count: int = COUNT) -> float:
    server = script(api, "msq", "server", "-c", count)
    return message_rate(server, script(api, "msq", "client", "-q", "-i", 0, "-c", count), count)


def peer_rate(peer: str, api: str) -> float:
    thing = OBJECT[api][1]
    rate = message_rate(
        [peer, api, "server", thing, str(COUNT)], [peer, api, "client", thing, str(COUNT)]
    )
    run(script(api, "msq", "server", "--clean"))
    return rate


def socket_rate(count: int = COUNT // 2) -> float:
    path = str(folder / "socket")
    argv = [PYTHON, str(HERE / "others.py"), "socket"]
    server, client = ([*argv, side, path, str(count)] for side in ("server", "client"))
    rate = message_rate(server, client, count)
    os.unlink(path)
    return rate


def queue_rate(count: int = COUNT // 2) -> float:
    return count / run([PYTHON, str(HERE / "others.py"), "queue", str(count)])


def delays(server: list[str]) -> tuple[float, float]:
    """From a send to its printed line, one message at a time: p50 and p99 in microseconds."""
    seconds = []
    read, write = os.pipe()
    process = start(server, stdout=write)
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
    return seconds[len(seconds) // 2] * 1e6, seconds[len(seconds) * 99 // 100] * 1e6


def idle(argvs: dict[str, list[str]], seconds: float = 2) -> dict[str, dict[str, float]]:
    """Wake-ups a second, milliseconds of CPU a second and KiB of memory, with nothing to do."""
    processes = {name: start(argv) for name, argv in argvs.items()}
    time.sleep(0.5)

    def now(pid: int) -> tuple[float, float, float]:
        status = Path(f"/proc/{pid}/status").read_text()
        switches = re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        cpu = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
        return float(switches[1]), float(cpu) / 1e6, float(memory[1])

    seen = {name: [now(process.pid)] for name, process in processes.items()}
    for _ in range(ROUNDS):
        time.sleep(seconds)
        for name, process in processes.items():
            seen[name].append(now(process.pid))
    for process in processes.values():
        process.kill()
        process.wait()
    return {
        name: {
            "wake-ups": (turns[-1][0] - turns[0][0]) / seconds / ROUNDS,
            "cpu": statistics.median(b[1] - a[1] for a, b in itertools.pairwise(turns)) / seconds,
            "memory": statistics.median(turn[2] for turn in turns[1:]),
        }
        for name, turns in seen.items()
    }


def reading_cost(size: int) -> float:
    """Microseconds of CPU for a reading of a short text in a segment of that size."""
    run(script("posix", "shm", "client", "--size", size), stdin=short_text())
    with serving(script("posix", "shm", "server", "-i0")) as (server, path):

        def now() -> tuple[int, int]:
            cpu = Path(f"/proc/{server.pid}/schedstat").read_text().split(maxsplit=1)[0]
            return int(cpu), path.read_bytes().count(b"\n")

        time.sleep(0.1)
        cpu, readings = now()
        time.sleep(0.3)
        cpu_then, readings_then = now()
    run(script("posix", "shm", "server", "--clean"))
    return (cpu_then - cpu) / 1e3 / (readings_then - readings)


def short_text() -> IO[bytes]:
    path = folder / "short"
    path.write_bytes(b"twenty bytes of text\n")
    return path.open("rb")


def large_text() -> Path:
    path = folder / "large"
    if not path.exists():
        path.write_bytes(b"0123456789abcdef" * 2**22 + b"\n")
    return path


def write_and_show() -> float:
    size = 2**26 + 4096
    with large_text().open("rb") as file:
        seconds = run(script("posix", "shm", "client", "--size", size), stdin=file)
    seconds += run(script("posix", "shm", "server", "-c1"))
    run(script("posix", "shm", "server", "--clean"))
    return seconds


def copy() -> float:
    there = Path("/dev/shm") / f"bench-{os.getpid()}-copy"
    try:
        return run(["cp", str(large_text()), str(there)])
    finally:
        there.unlink(missing_ok=True)


def clients_rate(clients: int, peer: str | None = None, count: int = 12_800) -> float:
    """Total messages a second, from clients that all send before the server starts and after."""
    if peer:
        client = [peer, "posix", "client", NAME, "1000000"]
        server = [peer, "posix", "server", NAME, str(count)]
    else:
        client = script("posix", "msq", "client", "-q", "-i", 0, "-c", 1_000_000)
        server = script("posix", "msq", "server", "-c", count)
    processes = [start(client) for _ in range(clients)]
    for process in processes:
        while not sending(process.pid):
            time.sleep(0.01)
    with serving(server) as (process, path):
        process.wait()
    for process in processes:
        process.kill()
        process.wait()
    run(script("posix", "msq", "server", "--clean"))
    return count / span(path.read_text().splitlines()[1 : count + 1])


def sending(pid: int) -> bool:
    """Whether the process waits in mq_timedsend(2), for room in the queue."""
    where = Path(f"/proc/{pid}/wchan").read_text()
    return "mq_timedsend" in where or "wq_sleep" in where


def span(lines: list[str]) -> float:
    """Seconds from the first of these lines to the last, by the times in them."""
    return (seconds_of(lines[-1]) - seconds_of(lines[0])) % 86400


def seconds_of(line: str) -> float:
    """The time in a line that a server printed."""
    hours, minutes, seconds = line.partition(" ")[0].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def message_cost(count: int, size: int = 0) -> float:
    """Microseconds a message: {"count": 1} and so on, or of that size."""
    client = script("posix", "msq", "client", "-q", "-i", 0, "-c", count)
    body = folder / "lines"
    body.write_text(('"' + "x" * (size - 2) + '"\n') * (count if size else 0))
    with serving(script("posix", "msq", "server", "-c", count)) as (process, path):
        start([*client, "--stdin"] if size else client, stdin=body.open("rb"))
        process.wait()
        return span(path.read_text().splitlines()[1:-1]) / count * 1e6


def long_run(count: int) -> list[float]:
    """Microseconds a message in each fifth of one long run, which are the rounds here."""
    with serving(script("posix", "msq", "server", "-c", count)) as (process, path):
        start(script("posix", "msq", "client", "-q", "-i", 0, "-c", count))
        process.wait()
        lines = path.read_text().splitlines()[1:-1]
    fifth = count // ROUNDS
    return [span(lines[n * fifth : (n + 1) * fifth]) / fifth * 1e6 for n in range(ROUNDS)]


# --- the table


def row(what: str, beside: str, value: str, ratio: float, reach: str, good: bool) -> list[str]:
    bar = "#" * min(30, max(1, round(ratio * 10)))
    return [what, value, beside, f"{ratio:.2f}", reach, "yes" if good else "NO", bar]


def measure(peer: str | None) -> Iterator[list[str]]:
    rates: dict[str, Callable[[], float]] = {}
    for api in OBJECT:
        rates[api] = functools.partial(pair_rate, api)
        if peer:
            rates[f"C {api}"] = functools.partial(peer_rate, peer, api)
    rates["queue"], rates["socket"] = queue_rate, socket_rate
    found = take_turns(rates)
    for api, goal in (("posix", 0.7), ("sysv", 0.25)):
        value = f"{found[api]:,.0f}/s"
        for beside, name, reach in (
            (f"C {api}", "the same in C", goal),
            ("queue", "multiprocessing.Queue", 1.5),
            ("socket", "Unix datagram socket", None),
        ):
            if beside in found:
                ratio = found[api] / found[beside]
                goal_text = f"at least {reach}" if reach else ""
                yield row(
                    f"messages, {api}", f"{name}: {found[beside]:,.0f}/s", value, ratio,
                    goal_text, not reach or ratio >= reach,
                )  # fmt: skip

    servers = {"Python": script("posix", "msq", "server", "-c", 200)}
    if peer:
        servers["C"] = [peer, "posix", "server", NAME, "200"]
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, argv in servers.items():
            turns[name].append(delays(argv))
    medians = {
        name: [statistics.median(values) for values in zip(*pairs, strict=True)]
        for name, pairs in turns.items()
    }
    if peer:
        for index, (name, reach) in enumerate((("p50", 1.5), ("p99", None))):
            ratio = medians["Python"][index] / medians["C"][index]
            yield row(
                f"delay, {name}", f"the same in C: {medians['C'][index]:.0f} us",
                f"{medians['Python'][index]:.0f} us", ratio,
                f"at most {reach}" if reach else "", not reach or ratio <= reach,
            )  # fmt: skip
    run(script("posix", "msq", "server", "--clean"))

    for api in OBJECT:
        start(script(api, "sem", "client")).wait()
    found = take_turns(
        {
            "posix": lambda: run(script("posix", "sem", "client", "-r")),
            "sysv": lambda: run(script("sysv", "sem", "client", "-r")),
            "python": lambda: run([PYTHON, "-c", "pass"]),
        },
        rounds=15,
    )
    for api in OBJECT:
        ratio = found[api] / found["python"]
        yield row(
            f"{api}_sem_client -r", f"python -c pass: {found['python'] * 1e3:.0f} ms",
            f"{found[api] * 1e3:.0f} ms", ratio, "at most 2.5", ratio <= 2.5,
        )  # fmt: skip

    argvs = {f"{api}_msq_server": script(api, "msq", "server") for api in OBJECT}
    argvs |= {f"{api}_sem_server": script(api, "sem", "server") for api in OBJECT}
    argvs["python"] = [PYTHON, "-c", "import time; time.sleep(60)"]
    found_idle = idle(argvs)
    bare = found_idle["python"]["memory"]
    for name, values in found_idle.items():
        if name != "python":
            yield row(
                f"idle {name}: memory", f"a bare interpreter: {bare / 1024:.1f} MiB",
                f"{values['memory'] / 1024:.1f} MiB", values["memory"] / bare,
                "at most 1.5", values["memory"] <= bare * 1.5,
            )  # fmt: skip
            yield row(
                f"idle {name}: wake-ups", f"CPU: {values['cpu']:.2f} ms a second",
                f"{values['wake-ups']:.1f}/s", values["wake-ups"],
                "about 1", values["wake-ups"] <= 1.6,
            )  # fmt: skip

    found = take_turns({"small": lambda: reading_cost(4096), "large": lambda: reading_cost(2**30)})
    ratio = found["large"] / found["small"]
    yield row(
        "reading 20 bytes of 1 GiB", f"of 4 KiB: {found['small']:.0f} us",
        f"{found['large']:.0f} us", ratio, "at most 1.2", ratio <= 1.2,
    )  # fmt: skip

    found = take_turns({"script": write_and_show, "cp": copy})
    ratio = found["script"] / found["cp"]
    yield row(
        "writing and showing 64 MiB", f"cp to /dev/shm: {found['cp'] * 1e3:.0f} ms",
        f"{found['script'] * 1e3:.0f} ms", ratio, "at most 3", ratio <= 3,
    )  # fmt: skip

    turns_of = {str(n): functools.partial(clients_rate, n) for n in (1, 4, 16, 64)}
    if peer:
        turns_of |= {f"C {n}": functools.partial(clients_rate, n, peer) for n in (1, 64)}
    found = take_turns(turns_of)
    for number in ("4", "16", "64"):
        ratio = found[number] / found["1"]
        yield row(
            f"messages, {number} clients", f"one client: {found['1']:,.0f}/s",
            f"{found[number]:,.0f}/s", ratio,
            "at least 0.8" if number == "64" else "", number != "64" or ratio >= 0.8,
        )  # fmt: skip
    if peer:
        yield row(
            "messages, 64 clients, all in C", f"one client: {found['C 1']:,.0f}/s",
            f"{found['C 64']:,.0f}/s", found["C 64"] / found["C 1"], "", True,
        )  # fmt: skip

    found = take_turns(
        {
            **{str(n): functools.partial(message_cost, n) for n in (1000, 10_000)},
            "half": lambda: message_cost(10_000, 4096),
            "bytes": lambda: message_cost(10_000, 8192),
        }
    )
    found["1000000"] = statistics.median(long_run(1_000_000))
    for number in (10_000, 1_000_000):
        ratio = found[str(number)] / found["1000"]
        yield row(
            f"a message of {number:,}", f"of 1,000: {found['1000']:.1f} us",
            f"{found[str(number)]:.1f} us", ratio, "flat", ratio <= 1.3,
        )  # fmt: skip
    for beside, what, reach in (("1000", "12", None), ("half", "4,096", 2)):
        ratio = found["bytes"] / found[beside]
        yield row(
            "a message of 8,192 bytes", f"of {what} bytes: {found[beside]:.1f} us",
            f"{found['bytes']:.1f} us", ratio, f"at most {reach}" if reach else "",
            not reach or ratio <= reach,
        )  # fmt: skip


def table(markdown: bool) -> None:
    """Measure, and print as it goes: in a process group that ends as one."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    heads = ["measured", "here", "beside", "ratio", "to reach", "reached", ""]
    print(
        f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores; "
        f"medians of {ROUNDS} rounds\n"
    )
    if markdown:
        print("|", " | ".join(heads[:-1]), "|\n" + "| --- " * 6 + "|")
    else:
        print(f"{heads[0]:34}{heads[1]:>13}  {heads[2]:36}{heads[3]:>6}  {heads[4]}")
    peer = compiled()
    if not peer:
        print("(no C compiler, so nothing beside C)")
    for what, here, beside, ratio, reach, reached, bar in measure(peer):
        if markdown:
            print("|", " | ".join([what, here, beside, ratio, reach, reached]), "|")
        else:
            mark = "" if reached == "yes" else "  <- not reached"
            print(f"{what:34}{here:>13}  {beside:36}{ratio:>6}  {reach:13}{bar}{mark}")


def main() -> int:
    global folder  # noqa: PLW0603
    sys.stdout.reconfigure(line_buffering=True)
    noted: list[int] = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # until there is a group to end
        worker = multiprocessing.get_context("fork").Process(
            target=table, args=(sys.argv[1:] == ["markdown"],)
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
        for api in OBJECT:
            for primitive in ("msq", "shm", "sem"):
                start(script(api, primitive, "server", "--clean"), start_new_session=True).wait()
    return 128 + noted[0] if noted else worker.exitcode or 0


if __name__ == "__main__":
    sys.exit(main())
