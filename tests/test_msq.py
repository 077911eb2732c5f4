"""The message-queue pairs: JSON, priorities and types, pipelines, full and empty queues."""

import json
import signal
import subprocess
import time

import posix_ipc
import pytest
import sysv_ipc
from conftest import ENV, Pair, needs, state, until, waits_in, with_glibc

JSON_LINES = ['{"count": 1}', "[1, 2.5, null]", '"hello"', "true", '{"name": "Zoë"}', "-0"]


def drain(pair: Pair) -> list[str]:
    """What a server reads, with an end that does not depend on the order."""
    with pair.opened() as queue:
        count = queue.current_messages
    return pair.run("server", f"-c{count}").stdout.splitlines()[1:-1]


def put(pair: Pair, *bodies: bytes, type: int = 1) -> None:
    """Send raw bytes, as a program that is none of ours would."""
    for body in bodies:
        if pair.api == "posix":
            with pair.opened(posix_ipc.O_CREAT) as queue:
                queue.send(body)
        else:
            with pair.opened(sysv_ipc.IPC_CREAT, max_message_size=2**20) as queue:
                queue.send(body, type=type)


def test_client_and_server_print_the_same(msq):
    with msq.server() as server:
        done = msq.client("-c3", "-i0.05")
        assert (done.returncode, done.stderr) == (0, "")
        server.wait_line("{'count': 3}")
        server.stop()
    assert server.texts == [
        msq.start_line,
        "{'count': 1}",
        "{'count': 2}",
        "{'count': 3}",
        msq.end_line,
    ]
    texts = [line.partition(" ") for line in done.stdout.splitlines()]
    assert [text for _, _, text in texts] == server.texts[1:-1]
    assert all(len(time) == len("09:39:41.019485") for time, _, _ in texts)


def test_the_interval_is_between_messages_and_not_after_the_last(msq):
    with msq.server("-c1"):
        msq.client("-c1", "-i60", timeout=20)


def test_the_count_ends_the_server(msq):
    with msq.server("-c2") as server:
        msq.client("-c3", "-i0", "-q")
        assert server.wait() == 0
    assert server.texts == [msq.start_line, "{'count': 1}", "{'count': 2}", msq.end_line]
    assert drain(msq)[0].endswith("{'count': 3}")
    assert msq.run("server", "-c0").stdout == f"{msq.start_line}\n{msq.end_line}\n"
    assert msq.client("-c0").stdout == ""


def test_quiet(msq):
    assert msq.client("-c1", "-q").stdout == ""


def test_default_count_is_15(msq):
    with msq.server("-c15") as server:
        msq.client("-i0", "-q")
        assert server.wait() == 0
    assert server.texts[-2] == "{'count': 15}"


def test_stdin_sends_each_line_as_it_comes(msq):
    """Sent before the next line is there, and with no interval."""
    with (
        msq.server("--json") as server,
        msq.start("client", "--stdin", stdin=subprocess.PIPE) as client,
    ):
        for line in JSON_LINES:
            client.type(f"{line}\n")
            server.wait_line(json.dumps(json.loads(line)))
        client.stdin.close()
        assert client.wait() == 0
        server.stop()
    assert server.out == [json.dumps(json.loads(line)) for line in JSON_LINES]
    assert server.err == [msq.start_line, msq.end_line]


def test_stdin_has_no_interval_and_no_count(msq):
    """Thirty lines, which at a second a line would take half a minute."""
    with msq.server("-c30") as server:
        began = time.monotonic()
        assert msq.client("--stdin", "-q", stdin="1\n" * 30).returncode == 0
        assert server.wait() == 0
        assert time.monotonic() - began < 15
    assert len(server.out) == 32


def test_stdin_with_an_interval_and_a_count(msq):
    began = time.monotonic()
    assert msq.client("--stdin", "-q", "-c3", "-i0.5", stdin="1\n" * 5).returncode == 0
    assert time.monotonic() - began > 0.9
    assert len(drain(msq)) == 3


@pytest.mark.parametrize(
    "broken",
    [
        b"NaN",
        b"",
        b"Infinity",
        b"{",
        b"hello",
        b"\xff",
        b"[" * 8000,
        b"9" * 5000,
        b'"\x1b[31m"',
        b"{} {}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_broken_line_is_named_and_not_sent_and_the_others_are(msq, broken):
    done = msq.client("--stdin", "-q", stdin=b'{"a": 1}\n' + broken + b"\n2")
    assert done.stderr.startswith(f"{msq.script('client')}: {msq.thing}: line 2 is not JSON")
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 1
    assert [line.partition(" ")[2] for line in drain(msq)] == ["{'a': 1}", "2"]


@pytest.mark.parametrize(
    "body, shown",
    [
        (b"hello", "b'hello'"),
        (b"", "b''"),
        (b"\0", "b''"),
        (b'{"a": 1}\0\0', "{'a': 1}"),
        (b"\xff\xfe", r"b'\xff\xfe'"),
        (b'"\xed\xa0\x80"', r"""b'"\xed\xa0\x80"'"""),
        (b'"\\ud800"', r"'\ud800'"),
        (b'"\\u001b[2J\\u0007"', r"'\x1b[2J\x07'"),
        (b"\x1b]0;title\x07", r"b'\x1b]0;title\x07'"),
        ('"\u202e\x85"'.encode(), r"'\u202e\x85'"),
        (b"NaN", "b'NaN'"),
        (b"[" * 2000, "b'" + "[" * 2000 + "'"),
        (b"9" * 1900, "9" * 1900),
        ("{}".encode("utf-16"), r"b'\xff\xfe{\x00}'"),
    ],
)
def test_what_comes_out_of_a_queue_is_untrusted(msq, body, shown):
    with msq.server() as server:
        put(msq, body, b'"after"')
        server.wait_line("after")
        server.stop()
    assert server.texts[1] == shown


def test_deep_nesting_and_long_integers_do_not_end_the_server(msq):
    with msq.server() as server:
        for body in (b"[" * 8000, b"[" * 4000 + b"]" * 4000, b"9" * 5000, b"[" * 900 + b"]" * 900):
            put(msq, body)
        put(msq, b'"after"')
        server.wait_line("after")
        assert server.stop() == 0


def test_json_output_carries_only_messages(msq):
    with msq.server("--json") as server:
        put(msq, b"hello", b'{"a":\n "\xc3\xab\x7f"}', b"1e999", b'"\\u001b"')
        put(msq, b'"after"')
        server.wait_line("after")
        server.stop()
    assert server.out == [r'{"a": "\u00eb\u007f"}', r'"\u001b"', '"after"']
    assert [line.partition(" ")[2] for line in server.err[1:-1]] == ["b'hello'", "b'1e999'"]


def test_a_pipeline_from_queue_to_queue(msq, make_pair):
    """`server --json | client --stdin`, with jq(1), tee(1) or anything in between."""
    other = make_pair(msq.api, "msq")
    server = subprocess.Popen(msq.argv("server", "--json", "-c3"), stdout=subprocess.PIPE, env=ENV)
    client = subprocess.Popen(other.argv("client", "--stdin", "-q"), stdin=server.stdout, env=ENV)
    server.stdout.close()
    msq.client("-c3", "-i0", "-q")
    assert (server.wait(20), client.wait(20)) == (0, 0)
    assert [line.partition(" ")[2] for line in drain(other)] == [
        f"{{'count': {number}}}" for number in (1, 2, 3)
    ]


def test_posix_priorities(make_pair):
    pair = make_pair("posix", "msq")
    for priority in (1, 5, 0, 5, 32767):
        pair.client("--stdin", "-q", "-p", priority, stdin=f"{priority}\n")
    assert [line.partition(" ")[2] for line in drain(pair)] == ["32767", "5", "5", "1", "0"]
    assert pair.client("-p32768").returncode == 2


def test_sysv_types(make_pair):
    pair = make_pair("sysv", "msq")
    for number in (3, 1, 2, 3):
        pair.client("--stdin", "-q", "--type", number, stdin=f"{number}\n")

    def take(*options: str) -> list[str]:
        return [
            line.partition(" ")[2]
            for line in pair.run("server", *options).stdout.splitlines()[1:-1]
        ]

    assert take("--type=3", "-c1") == ["3"]
    assert take("--type=-2", "-c2") == ["1", "2"]
    assert take("-c1") == ["3"]
    assert pair.client("--type", "0").returncode == 2
    with pair.server("--type=2", "-c1", "--json") as server:
        until(lambda: waits_in(server.pid, "msgrcv"))
        for number in (1, 2):  # also while it waits, it takes its own type only
            pair.client("--stdin", "-q", "--type", number, stdin=f"{number}\n")
        assert server.wait() == 0
    assert server.out == ["2"]


@pytest.mark.parametrize("options", [["-t0"], ["-t0.2"]])
def test_a_full_posix_queue(make_pair, options):
    pair = make_pair("posix", "msq")
    pair.client("-c10", "-i0", "-q")
    done = pair.client("-c1", *options)
    assert done.stderr == f"posix_msq_client: {pair.name}: The queue is full\n"
    assert (done.returncode, done.stdout) == (1, "")
    assert len(drain(pair)) == 10


def test_a_full_sysv_queue(make_pair):
    pair = make_pair("sysv", "msq")
    done = pair.client("-c100000", "-i0", "--no-wait")
    assert done.returncode == 1
    assert done.stderr.startswith(f"sysv_msq_client: {pair.key}: The queue is full")
    assert done.stderr.endswith("kernel.msgmnb is the limit of a new queue\n")
    assert len(done.stderr.splitlines()) == 1
    sent = len(done.stdout.splitlines())
    assert len(drain(pair)) == sent > 100


def test_a_client_waits_for_room_and_loses_nothing(msq):
    count = 15 if msq.api == "posix" else 2000
    with msq.start("client", f"-c{count}", "-i0") as client:
        until(lambda: len(client.out) >= 10)
        assert client.popen.poll() is None
        with msq.server(f"-c{count}") as server:
            assert server.wait() == 0
        assert client.wait() == 0
    assert server.texts[1:-1] == client.texts == [f"{{'count': {n + 1}}}" for n in range(count)]


def test_a_message_larger_than_the_queue_takes(msq):
    done = msq.client("--stdin", "-q", stdin='"small"\n"' + "x" * 20000 + '"\n')
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{msq.script('client')}: {msq.thing}: ")
    assert len(drain(msq)) == 1


def test_the_largest_message_the_queue_takes(msq):
    text = json.dumps("x" * 8190)
    with msq.server("-c1", "--json") as server:
        assert msq.client("--stdin", "-q", stdin=text).returncode == 0
        assert server.wait() == 0
    assert server.out == [text]


def test_queue_attributes_at_creation(make_pair):
    pair = make_pair("posix", "msq")
    with pair.server("--max-messages", 3, "--max-message-size", 64):
        with pair.opened() as queue:
            assert (queue.max_messages, queue.max_message_size) == (3, 64)
        done = pair.client("--stdin", stdin=json.dumps("x" * 64))
    assert done.stderr == (
        f"posix_msq_client: {pair.name}: The message is too long: "
        "--max-message-size is set where the queue is made\n"
    )


def test_a_server_prints_nothing_twice_when_it_is_stopped_and_continued(msq):
    with msq.server() as server:
        server.popen.send_signal(signal.SIGSTOP)
        msq.client("-c3", "-i0", "-q")
        server.popen.send_signal(signal.SIGCONT)
        server.wait_line("{'count': 3}")
        server.stop()
    assert server.texts[1:-1] == [f"{{'count': {n}}}" for n in (1, 2, 3)]


@with_glibc
@needs("strace")
def test_a_message_costs_the_server_one_receive_and_one_write(msq, tmp_path):
    """The messages wait before the server starts, or come as fast as it takes them."""
    trace = tmp_path / "trace"
    with msq.start("client", "-c200", "-i0", "-q") as client:
        until(lambda: waits_in(client.pid, "mq_timedsend") or client.popen.poll() == 0)
        done = subprocess.run(
            ["strace", "-f", "-o", trace, *msq.argv("server", "-c200")],
            stdout=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
        assert client.wait() == 0
    assert len(done.stdout.splitlines()) == 202
    calls = [
        line.split()[1].partition("(")[0] for line in trace.read_text().splitlines() if "(" in line
    ]
    start = calls.index("write")
    wanted = {"mq_timedreceive", "msgrcv", "write"}
    end = len(calls) - 1 - calls[::-1].index("write")
    others = [call for call in calls[start:end] if call not in wanted]
    assert calls.count("write") == 202
    # What the library does for its memory apart, which does not grow with the messages.
    assert len(others) <= 20, others


def test_a_client_that_waits_for_room_in_a_queue_that_is_removed(msq):
    count = 11 if msq.api == "posix" else 2000
    with msq.start("client", f"-c{count}", "-i0") as client:
        until(lambda: len(client.out) >= 10)
        until(lambda: waits_in(client.pid, "mq_timedsend", "msgsnd"), "it waits")
        msq.remove()
        assert client.wait(5) == 1
    assert len(client.err) == 1
    assert client.err[0].startswith(f"{msq.script('client')}: {msq.thing}: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_client_waits_for_room(msq, number):
    count = 11 if msq.api == "posix" else 2000
    with msq.start("client", f"-c{count}", "-i0") as client:
        until(lambda: len(client.out) >= 10)
        until(lambda: waits_in(client.pid, "mq_timedsend", "msgsnd"), "it waits")
        assert client.stop(number, 5) in (-number, 128 + number)
    assert client.err == []


def test_stop_and_continue_while_a_client_waits_for_room(msq):
    """Ctrl-Z and fg: what it waited with is sent once."""
    count = 11 if msq.api == "posix" else 2000
    with msq.start("client", f"-c{count}", "-i0") as client:
        until(lambda: len(client.out) >= 10)
        until(lambda: waits_in(client.pid, "mq_timedsend", "msgsnd"), "it waits")
        client.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(client.pid) == "T")
        client.popen.send_signal(signal.SIGCONT)
        until(lambda: waits_in(client.pid, "mq_timedsend", "msgsnd"), "it waits again")
        with msq.server(f"-c{count}") as server:
            assert server.wait() == 0
        assert client.wait() == 0
    assert client.err == []
    assert server.texts[1:-1] == [f"{{'count': {n + 1}}}" for n in range(count)]


def test_the_queue_is_removed_between_two_messages(msq):
    """The client says so, and not that its message is too long."""
    with msq.start("client", "-c1000", "-i0.3") as client:
        until(lambda: client.out)
        msq.remove()
        assert client.wait(5) == 1
    assert len(client.err) == 1
    assert "removed" in client.err[0] or "no longer exists" in client.err[0]


def test_an_end_of_line_of_windows_is_not_sent(msq):
    assert msq.client("--stdin", "-q", stdin=b'{"a": 1}\r\n').returncode == 0
    with msq.opened() as queue:
        assert queue.receive()[0] == b'{"a": 1}'


@pytest.mark.parametrize("line, hint", [(b"hello", True), (b"9" * 5000, False), (b"{", False)])
def test_the_hint_is_for_a_text_alone(msq, line, hint):
    done = msq.client("--stdin", "-q", stdin=line)
    assert ("double quotes" in done.stderr) == hint


def test_a_nul_at_the_start_is_shown(msq):
    with msq.server("-c1") as server:
        with msq.opened() as queue:
            queue.send(b"\0a")
        assert server.wait() == 0
    assert server.out[1].endswith(r" b'\x00a'")


def test_a_message_as_long_as_a_full_queue_takes_is_no_error(make_pair):
    """It fits when the queue is empty, so it is the queue that is full."""
    pair = make_pair("sysv", "msq")
    pair.client("-c1", "-i0", "-q")
    with pair.opened() as queue:
        queue.max_size = 100
    body = '"' + "x" * 98 + '"'
    done = pair.client("--stdin", "-q", "--no-wait", stdin=body)
    assert "queue is full" in done.stderr.lower()
