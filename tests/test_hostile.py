"""Hostile bytes: hypothesis feeds a running server, which must go on and print no control code."""

import json
import re

import posix_ipc
import pytest
import sysv_ipc
from conftest import record, rounds, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=rounds(150),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
BODIES = (
    st.binary(max_size=8000)
    | st.text(max_size=2000).map(lambda text: text.encode(errors="surrogatepass"))
    | JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    | st.integers(1, 8000).map(lambda n: b"[" * n)
    | st.integers(1, 4000).map(lambda n: b"[" * n + b"]" * n)
    | st.sampled_from([b"\x1b[2J", b'"\x9b2J"', b"\0", b"1e999", b"-Infinity", b"9" * 5000])
).filter(lambda body: len(body) <= 8192)


def readable(line: str) -> None:
    assert line.isprintable(), ascii(line)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_message_bodies(msq, option):
    with msq.server(*option) as server:
        server.wait_line("start") if not option else until(lambda: server.err)
        if msq.api == "posix":
            queue = posix_ipc.MessageQueue(msq.name)
        else:
            queue = sysv_ipc.MessageQueue(msq.key, max_message_size=8192)
        fed = 0

        @SETTINGS
        @given(BODIES)
        def feed(body: bytes) -> None:
            nonlocal fed
            fed += 1
            before = len(server.out) + len(server.err)
            queue.send(body)
            until(lambda: len(server.out) + len(server.err) > before, f"a line for {body!r}", 10)
            assert len(server.out) + len(server.err) == before + 1
            readable(server.out[-1] if server.out else "")
            readable(server.err[-1] if server.err else "")
            if option and server.out:
                json.loads(server.out[-1], parse_constant=int)

        feed()
        assert server.popen.poll() is None
        assert server.stop() == 0
    record(inputs=fed)


def test_segment_contents(shm):
    shm.client("--size", 8192, stdin="")
    memory = None if shm.api == "posix" else sysv_ipc.SharedMemory(shm.key)
    with shm.server("-i0") as server:
        server.wait_line("start")
        fed = 0

        @SETTINGS
        @given(BODIES)
        def feed(body: bytes) -> None:
            nonlocal fed
            fed += 1
            data = body.ljust(8192, b"\0")
            if memory:
                memory.write(data)
            else:
                with shm.path.open("r+b") as file:
                    file.write(data)
            before = len(server.out)
            until(lambda: len(server.out) > before + 2, f"readings of {body!r}", 10)
            for line in server.out[before:]:
                readable(line)
                assert re.match(r"\d\d:\d\d:\d\d\.\d{6} ", line)

        feed()
        assert server.stop() == 0
    record(inputs=fed)
