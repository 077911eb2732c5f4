"""Intervals and time limits against a clock, loosely: a slow machine is no failure."""

import datetime
import itertools
import subprocess
import time

import pytest
from conftest import ENV, Pair, Process, cpu, until

ZONE = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
SOON = 10  # what is asked for within a second or two has come by then, on any machine


def times(process: Process) -> list[float]:
    """The seconds of the day at which it printed its lines, by its own clock."""
    found = []
    for line in list(process.out):
        if line[2:3] == ":" and line[5:6] == ":":
            hours, minutes, seconds = line.partition(" ")[0].split(":")
            found.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
    return found


def steps(process: Process) -> list[float]:
    """The seconds from line to line, over midnight too."""
    found = times(process)
    return [(after - before) % 86400 for before, after in itertools.pairwise(found)]


@pytest.mark.parametrize("option, seconds", [([], 1), (["-i0.4"], 0.4), (["-i1.6"], 1.6)])
def test_the_interval_of_a_queues_client(msq, option, seconds):
    with msq.start("client", "-c3", *option) as client:
        assert client.wait() == 0
    assert len(steps(client)) == 2
    assert all(seconds * 0.9 < step < seconds + SOON for step in steps(client))


@pytest.mark.parametrize("option, seconds", [([], 3), (["-i0.4"], 0.4), (["-i1.6"], 1.6)])
def test_the_interval_of_a_segments_server(shm, option, seconds):
    with shm.server("-c3", *option) as server:
        assert server.wait() == 0
    assert len(steps(server)) == 2
    assert all(seconds * 0.9 < step < seconds + SOON for step in steps(server))


@pytest.mark.parametrize("option, seconds", [([], 1), (["-i3"], 3)])
def test_the_interval_of_a_semaphores_server(sem, option, seconds):
    """A change is shown when it looks again, which is not at once."""
    with sem.server(*option) as server:
        server.wait_line("semaphore: 2")
        began = time.monotonic()
        with sem.opened() as semaphore:
            semaphore.acquire()
        took = time.monotonic() - began  # on a busy machine it may have looked already
        server.wait_line("semaphore: 1")
        server.stop()
    if took < seconds / 10:
        assert seconds * 0.8 < steps(server)[0] < seconds + SOON


@pytest.mark.parametrize("primitive", ["shm", "sem"])
def test_an_interval_of_nothing_does_not_spin(make_pair, api, primitive):
    pair = make_pair(api, primitive)
    with pair.server("-i0") as server:
        server.wait_line(":")
        before, began = cpu(server.pid), time.monotonic()
        time.sleep(2)  # the time is what is measured against
        assert cpu(server.pid) - before < 0.6 * (time.monotonic() - began)


def took(argv: list[str], status: int, turns: int = 3) -> float:
    """The shortest of three runs: the others may have been held up."""
    runs = []
    for _ in range(turns):
        began = time.monotonic()
        done = subprocess.run(argv, env=ENV, capture_output=True, stdin=subprocess.DEVNULL)
        runs.append(time.monotonic() - began)
        assert done.returncode == status, done
    return min(runs)


def full(pair: Pair) -> None:
    """Let the pair's client have to wait."""
    if pair.primitive == "msq":
        pair.client("-c10", "-i0", "-q")
    else:
        with pair.server("--value", "0"):
            pass


LIMITED = [("posix", "msq"), ("posix", "sem"), ("sysv", "sem")]


@pytest.mark.parametrize("limited", LIMITED, ids=["-".join(pair) for pair in LIMITED])
def test_a_time_limit(make_pair, limited):
    pair = make_pair(*limited)
    full(pair)
    start = took(pair.argv("client", "--help"), 0)
    assert took(pair.argv("client", "-t0"), 1) - start < 0.3
    limited = took(pair.argv("client", "-t0.3"), 1)
    assert limited > 0.3
    assert limited - start < 0.75
    assert 1.9 < took(pair.argv("client", "-t2"), 1, turns=1) < 2 + SOON
    if pair.primitive == "sem":  # the default is not to wait
        assert took(pair.argv("client"), 1) - start < 0.3


def test_a_time_limit_of_waiting_for_zero(make_pair):
    pair = make_pair("sysv", "sem")
    pair.client()
    start = took(pair.argv("client", "--help"), 0)
    limited = took(pair.argv("client", "--zero", "-t0.3"), 1)
    assert limited > 0.3
    assert limited - start < 0.75
    assert took(pair.argv("client", "--zero"), 1) - start < 0.3


def test_the_default_of_a_queues_client_is_to_wait(msq):
    """For longer than any limit that it may use inside."""
    count = 11 if msq.api == "posix" else 2000
    with msq.start("client", f"-c{count}", "-i0") as client:
        until(lambda: len(client.out) >= 10)
        time.sleep(2.5)  # the time is what is measured against
        assert client.popen.poll() is None
        with msq.server(f"-c{count}") as server:
            assert server.wait() == 0
        assert client.wait() == 0


def test_the_printed_time_is_local_time(pair):
    """In a zone that is five hours and a half ahead, whatever this machine's is."""
    environment = {**ENV, "TZ": "HERE-5:30"}
    with pair.server(env=environment) as server:
        if pair.primitive == "msq":
            with pair.start("client", "-c1", env=environment) as client:
                client.wait()
            assert len(times(client)) == 1
        until(lambda: times(server))
        now = datetime.datetime.now(ZONE)
    of_day = now.hour * 3600 + now.minute * 60 + now.second
    for printed in times(server) + (times(client) if pair.primitive == "msq" else []):
        assert (of_day - printed + 30) % 86400 < 90
