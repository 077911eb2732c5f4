"""Storms: servers stopped and killed, writers killed, fifty starts at once, peers that freeze."""

import itertools
import random
import re
import signal
import subprocess
import threading
import time

import pytest
import sysv_ipc
from conftest import (
    ENV,
    Pair,
    Process,
    finish,
    needs,
    needs_shm,
    record,
    rounds,
    start_together,
    state,
    until,
    waits_in,
)

COUNT = re.compile(r"^[0-9:.]{15} \{'count': (\d+)\}$")


def numbers(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := COUNT.match(line))]


def waiting_messages(pair: Pair) -> int:
    with pair.opened() as queue:
        return queue.current_messages


def drain(pair: Pair) -> list[str]:
    with pair.server() as server:
        until(lambda: waiting_messages(pair) == 0)
        assert server.stop() == 0
    return server.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_lost_when_a_server_is_stopped(msq, number):
    """A stream of numbered messages, the server stopped and started again at random moments."""
    restarts, lines = rounds(20), []
    with msq.start("client", "-q", "-i0", "-c1000000000") as client:
        for _ in range(restarts):
            with msq.server() as server:
                server.wait_line("start")
                time.sleep(random.random() * 0.02)  # the moment is what the test varies
                assert server.stop(number) == 0
            assert server.out[-1] == msq.end_line
            assert server.err == []
            lines += server.out
        client.popen.terminate()
        client.wait()
    seen = numbers(lines + drain(msq))
    assert seen == list(range(1, len(seen) + 1))
    record(restarts=restarts, messages=len(seen), lost=0)


def test_nothing_is_lost_between_several_servers_and_clients(msq):
    clients, servers, messages = 3, 3, 400
    lines: list[list[str]] = [[] for _ in range(servers)]
    going = True

    def keep_stopping(mine: list[str]) -> None:
        while going:
            with msq.server() as server:
                server.wait_line("start")
                time.sleep(random.random() * 0.05)
                assert server.stop() == 0
            mine.extend(server.out)

    threads = [threading.Thread(target=keep_stopping, args=(mine,)) for mine in lines]
    for thread in threads:
        thread.start()
    senders = []
    for number in range(clients):
        text = "".join(f"[{number}, {n}]\n" for n in range(messages))
        sender = subprocess.Popen(
            msq.argv("client", "--stdin", "-q"), stdin=subprocess.PIPE, env=ENV, text=True
        )
        threads.append(threading.Thread(target=sender.communicate, args=(text,)))
        threads[-1].start()
        senders.append(sender)
    for sender in senders:
        assert sender.wait(60) == 0
    until(lambda: waiting_messages(msq) == 0, timeout=60)
    going = False
    for thread in threads:
        thread.join(30)
    pairs = [
        [tuple(map(int, found)) for line in mine for found in re.findall(r"\[(\d), (\d+)\]", line)]
        for mine in lines
    ]
    assert sorted(itertools.chain(*pairs)) == [
        (number, n) for number in range(clients) for n in range(messages)
    ]
    for mine in pairs:
        for number in range(clients):
            of_one = [n for client, n in mine if client == number]
            assert of_one == sorted(of_one)
    record(messages=clients * messages)


def test_a_server_that_is_killed_loses_at_most_one_message(msq):
    """The one between its receive and its print; what each of them printed is without a gap."""
    kills, printed = rounds(20), []
    with msq.start("client", "-q", "-i0", "-c1000000000") as client:
        for _ in range(kills):
            with msq.server() as server:
                server.wait_line("start")
                time.sleep(random.random() * 0.02)
                server.stop(signal.SIGKILL)
            printed.append(numbers(server.out))
        client.popen.terminate()
        client.wait()
    printed.append(numbers(drain(msq)))
    for mine in printed:
        assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True
    seen = list(itertools.chain(*printed))
    assert seen == sorted(set(seen))
    assert seen[-1] - len(seen) <= kills
    record(kills=kills, messages=len(seen))


def texts_of(letter: str) -> str:
    """Lines of one letter, each with its own length in front, of up to 200,000 characters."""
    lines = []
    for _ in range(50):
        length = random.choice([1, 100, 5000, 200_000]) + random.randrange(10)
        lines.append(f"{length}:{letter * length}\n")
    return "".join(lines)


def whole(text: str) -> bool:
    found = re.fullmatch(r"(\d+):(a*|b*)", text)
    return text == "" or bool(found and len(found[2]) == int(found[1]))


def test_writers_killed_at_random_never_leave_a_mix(shm):
    """Two at once, SIGKILL; the server shows a whole text, or that a write was cut short."""
    kills = rounds(40)
    shm.client("--size", 300_000, stdin="")
    files = {letter: texts_of(letter) for letter in "ab"}
    with shm.server("--changes", "-i0") as server:

        def kill_writers(letter: str) -> None:
            for _ in range(kills // 2):
                with shm.start("client", stdin=subprocess.PIPE) as client:
                    feed = threading.Thread(target=feed_forever, args=(client, files[letter]))
                    feed.start()
                    until(lambda: client.out)
                    time.sleep(random.random() * 0.03)
                    client.stop(signal.SIGKILL)
                    feed.join()

        threads = [threading.Thread(target=kill_writers, args=(letter,)) for letter in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shm.client(stdin="7:aaaaaaa\n").returncode == 0
        server.wait_line("7:aaaaaaa")
        assert server.stop() == 0
    shown = [text for text in server.texts[1:-1] if text != "(incomplete write)"]
    assert [text for text in shown if not whole(text)] == []
    record(kills=kills, readings=len(server.texts) - 2, torn=0)


def feed_forever(client: Process, text: str) -> None:
    try:
        while True:
            client.type(text)
    except (BrokenPipeError, ValueError):
        pass


def test_two_writers_at_once_and_no_text_is_a_mix(shm):
    """Until the server has shown enough of both to have met one, were there any."""
    shm.client("--size", 300_000, stdin="")
    with (
        shm.server("-i0") as server,
        shm.start("client", stdin=subprocess.PIPE) as one,
        shm.start("client", stdin=subprocess.PIPE) as other,
    ):
        threads = [
            threading.Thread(target=feed_forever, args=(writer, texts_of(letter)))
            for writer, letter in ((one, "a"), (other, "b"))
        ]
        for thread in threads:
            thread.start()
        for letter in "ab":
            until(lambda: sum(text[-1:] == letter for text in server.texts) >= 40, letter, 60)
        for writer in (one, other):
            writer.stop()
        for thread in threads:
            thread.join()
        assert server.stop() == 0
    assert one.err == other.err == []
    assert [text for text in server.texts[1:-1] if not whole(text)] == []


def freeze_in_a_write(shm: Pair, client: Process) -> None:
    """Stop the client again and again until it stands in the middle of a write."""

    def writing() -> bool:
        client.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(client.pid) == "T")
        if shm.api == "posix":
            mark = shm.path.read_bytes()[-1:]
        else:
            with shm.opened() as segment:
                mark = segment.read(1, segment.size - 1)
        if mark == b"\x01":
            return True
        client.popen.send_signal(signal.SIGCONT)
        return False

    until(writing, "a client stopped in a write", 60)


def test_a_frozen_writer_holds_up_nobody_who_wants_to_stop(shm):
    needs_shm(24)  # five times as much, for the other tests need some at the same time
    shm.client("--size", 2**22, stdin="")
    with shm.server("-i0.01") as server, shm.start("client", stdin=subprocess.PIPE) as client:
        text = ("x" * 4_000_000 + "\n") * 20
        feed = threading.Thread(target=feed_forever, args=(client, text))
        feed.start()
        freeze_in_a_write(shm, client)
        with shm.server() as second:  # one can start
            second.wait_line("start")
            assert second.stop(timeout=2.5) == 0
        assert server.stop(timeout=2.5) == 0
        assert server.texts[-1] == shm.end_line
        with shm.start("client", stdin=subprocess.PIPE) as other:  # waits, and can be ended
            other.type("other\n")
            until(
                lambda: waits_in(other.pid, "flock", "semop", "semtimedop", "clock_nanosleep"),
                "it waits",
            )
            assert other.stop(signal.SIGINT, timeout=5) in (-2, 130)
        client.stop(signal.SIGKILL)
        feed.join()
    done = shm.run("server", "-c1")
    assert done.stdout.splitlines()[1].endswith("(incomplete write)")
    assert shm.client(stdin="mended\n").returncode == 0
    assert shm.run("server", "-c1").stdout.splitlines()[1].endswith("mended")


def test_a_frozen_sender_and_a_frozen_holder(make_pair, api):
    msq, sem = make_pair(api, "msq"), make_pair(api, "sem")
    with msq.server() as server, msq.start("client", "-i0", "-c1000000000", "-q") as frozen:
        server.wait_line("'count'")
        frozen.popen.send_signal(signal.SIGSTOP)
        msq.client("--stdin", "-q", stdin='"another"\n')
        server.wait_line("another")
        assert server.stop(timeout=5) == 0
    with sem.server("-i0.01") as server, sem.start("client", "--", "sleep", "60") as frozen:
        server.wait_line("semaphore: 1")
        frozen.popen.send_signal(signal.SIGSTOP)
        assert sem.client().stdout == "semaphore: 0\n"
        server.wait_line("semaphore: 0")
        assert server.stop(timeout=5) == 0
        frozen.popen.send_signal(signal.SIGCONT)
        assert frozen.stop() in (143, -15)  # the System V client has become the command


def test_a_holder_that_is_killed(sem):
    """The kernel gives back a System V semaphore, and not a POSIX one: `-r` does."""
    with sem.server("-i0.01") as server:
        for _ in range(rounds(3)):
            with sem.start("client", "--", "sh", "-c", "echo held; exec sleep 60") as client:
                client.wait_line("held")
            # The way out of the context has killed the client, and the command with it.
            if sem.api == "posix":
                until(lambda: server.texts[-1] == "semaphore: 1")
                assert sem.client("-r").stdout == "semaphore: 2\n"
            until(lambda: server.texts[-1] == "semaphore: 2")


SERVERS, CLIENTS = 10, 40  # fifty together


def test_fifty_semaphore_starts_at_once(sem):
    for _ in range(rounds(1)):
        sem.remove()
        done = finish(start_together([sem.argv("client")] * CLIENTS))
        taken = [out for out, err, status in done if status == 0]
        assert len(taken) == 2, done
        assert {err for out, err, status in done if status} == {
            f"{sem.script('client')}: {sem.thing}: Semaphore is busy\n"
        }
        sem.remove()
        servers = start_together([sem.argv("server", "--value", "5")] * SERVERS)
        for server in servers:
            assert server.stdout.readline().startswith("start ")
            assert server.stdout.readline().endswith(" semaphore: 5\n")
            server.terminate()
        assert {(err, status) for _, err, status in finish(servers)} == {("", 0)}


def test_fifty_queue_starts_at_once(msq):
    for _ in range(rounds(1)):
        msq.remove()
        servers = start_together([msq.argv("server", "-c4")] * SERVERS)
        clients = start_together([msq.argv("client", "-c1", "-q")] * CLIENTS)
        assert {(out, err, status) for out, err, status in finish(clients)} == {("", "", 0)}
        assert all(
            (err, status, out.count("{'count': 1}")) == ("", 0, 4)
            for out, err, status in finish(servers)
        )


def test_fifty_segment_starts_at_once(shm):
    for turn in range(rounds(1)):
        shm.remove_all()
        servers = start_together([shm.argv("server", "-c3", "-i0.1")] * SERVERS)
        clients = start_together(
            [["sh", "-c", 'echo text | "$0" "$@"', *shm.argv("client")]] * CLIENTS,
        )
        assert set(finish(clients)) == {(f"write to {shm.thing}\n", "", 0)}
        for out, err, status in finish(servers):
            assert (err, status) == ("", 0)
            assert {line.partition(" ")[2] for line in out.splitlines()[1:-1]} <= {"", "text"}
        # Nothing that was written to the new segment was wiped.
        assert shm.run("server", "-c1").stdout.splitlines()[1].endswith("text"), turn


@needs("strace")
@pytest.mark.parametrize("primitive, late", [("sem", 1_600_000), ("shm", 400_000)])
def test_a_creator_that_is_held_up_is_waited_for(make_pair, primitive, late):
    """The window between semget(2) and semop(2), opened wide by strace(1)."""
    pair = make_pair("sysv", primitive)
    inject = f"inject=semget:delay_exit={late}"
    side, stdin = "client", "text\n"
    slow = subprocess.Popen(
        ["strace", "-o", "/dev/null", "-e", inject, *pair.argv(side)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    semaphore = pair if primitive == "sem" else pair.lock
    until(semaphore.exists)
    assert not sysv_ipc.Semaphore(semaphore.key).o_time  # or the test has missed the moment
    done = pair.client(stdin=stdin)
    out, err = slow.communicate("other\n", timeout=60)
    assert (done.returncode, slow.returncode, done.stderr, err) == (0, 0, "", "")
    if primitive == "sem":
        # The slow one looks at the value late, when the other has taken one too.
        assert {done.stdout, out} <= {"semaphore: 1\n", "semaphore: 0\n"}
        assert sysv_ipc.Semaphore(pair.key).value == 0


@pytest.mark.parametrize("primitive", ["sem", "shm"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_creator_that_died_leaves_a_clear_error(make_pair, primitive, side):
    pair = make_pair("sysv", primitive)
    sysv_ipc.Semaphore(pair.key if primitive == "sem" else ~pair.key, sysv_ipc.IPC_CREX)
    done = pair.run(side, stdin="text\n")
    assert done.returncode == 1
    assert "never got its value" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pair.run("server", "--clean").stdout == f"removed {pair.key}\n"
    assert pair.run("client", stdin="text\n").returncode == 0


def test_nothing_is_given_back_before_it_has_its_value(make_pair):
    """That would set o_time, so that all others take it for finished, with a value of 1."""
    pair = make_pair("sysv", "sem")
    unfinished = sysv_ipc.Semaphore(pair.key, sysv_ipc.IPC_CREX)
    done = pair.client("-r")
    assert (done.returncode, unfinished.o_time, unfinished.value) == (1, 0, 0)
    assert "has no value yet" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_queue_is_removed_under_the_server(msq):
    with msq.server() as server:
        msq.remove()
        assert server.wait(5) == 1
    assert len(server.err) == 1
    assert server.err[0].startswith(f"{msq.script('server')}: {msq.thing}: ")
    assert "removed" in server.err[0] or "no longer exists" in server.err[0]


def test_the_queue_is_removed_under_a_busy_pair(msq):
    """In the stream of messages too, which would not end by itself."""
    with msq.server() as server, msq.start("client", "-q", "-i0", "-c1000000000") as client:
        server.wait_line("'count'")
        msq.remove()
        assert client.wait(5) == 1
        assert server.wait(5) == 1
    assert len(server.err) == len(client.err) == 1


def test_the_object_is_replaced_by_one_of_the_same_name(pair):
    """While the server cannot look, so that it never sees that there is none."""
    option = [] if pair.primitive == "msq" else ["-i0.1"]
    with pair.server(*option) as server:
        server.wait_line("start")
        server.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(server.pid) == "T")
        pair.remove()
        done = pair.client(*(["-c1"] if pair.primitive == "msq" else []), stdin="text\n")
        assert (done.returncode, done.stderr) == (0, "")
        server.popen.send_signal(signal.SIGCONT)
        assert server.wait(5) == 1
        assert len(server.err) == 1
    with pair.server(*option) as server:
        server.wait_line(
            {"msq": "{'count': 1}", "shm": "text", "sem": "semaphore: 1"}[pair.primitive]
        )


@needs("ipcrm")
def test_ipcrm_removes_under_the_server(make_pair):
    for primitive, option in (("msq", "-Q"), ("shm", "-M"), ("sem", "-S")):
        pair = make_pair("sysv", primitive)
        with pair.server() as server:
            server.wait_line("start")
            subprocess.run(["ipcrm", option, str(pair.key)], check=True)
            assert server.wait(5) == 1
        assert len(server.err) == 1


def test_a_client_that_is_killed_sends_whole_messages(msq):
    """SIGKILL at a random moment: each message was sent whole, or not at all."""
    with msq.server() as server:
        for _ in range(rounds(10)):
            with msq.start("client", "-q", "-i0", "-c1000000000") as client:
                count = len(server.out)
                until(lambda: len(server.out) > count)
                time.sleep(random.random() * 0.01)
                client.stop(signal.SIGKILL)
        until(lambda: waiting_messages(msq) == 0)
        assert server.stop() == 0
    assert len(numbers(server.out)) == len(server.out) - 2
    steps = [b - a for a, b in itertools.pairwise(numbers(server.out)) if b != 1]
    assert set(steps) <= {1}


@needs("strace")
def test_a_creator_that_is_held_up_is_waited_for_by_a_server(make_pair):
    pair = make_pair("sysv", "sem")
    inject = "inject=semget:delay_exit=1500000"
    slow = subprocess.Popen(
        ["strace", "-o", "/dev/null", "-e", inject, *pair.argv("client")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENV,
    )
    until(pair.exists)
    assert not sysv_ipc.Semaphore(pair.key).o_time  # or the test has missed the moment
    with pair.server() as server:
        slow.wait()
        assert server.stop() == 0
    assert server.err == []
