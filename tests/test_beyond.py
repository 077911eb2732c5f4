"""The way beyond one machine, between two hosts made of namespaces, broker restarted.

The pipelines are the README's own lines; each host has its own network and its own IPC objects.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ENV, ROOT, Pair, Process, needs, readme, until

README = readme()
MESSAGES = 60
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for hosts made of namespaces"),
    needs("unshare", "mosquitto", "mosquitto_pub", "mosquitto_sub"),
    needs("redis-server", "redis-cli", "ip", "ss"),
]


class Host:
    """A host: its processes see a network and IPC objects of their own."""

    def __init__(self) -> None:
        self.shell = subprocess.Popen(
            ["unshare", "--net", "--ipc", "sh", "-c", "ip link set lo up; echo up; read _"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.shell.stdout.readline() == b"up\n"
        self.running: list[Process] = []

    def argv(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.shell.pid), "--net", "--ipc", *command]

    def run(self, *command: str, **options: Any) -> str:
        return subprocess.check_output(self.argv(*command), text=True, timeout=60, **options)

    def start(self, *command: str) -> Process:
        process = Process(self.argv(*command), cwd=ROOT, start_new_session=True)
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.__exit__()
        self.shell.stdin.close()
        self.shell.wait(20)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    left, right = Host(), Host()
    left.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0",
             "netns", str(right.shell.pid))  # fmt: skip
    for host, address in ((left, "10.0.0.1"), (right, "10.0.0.2")):
        host.run("ip", "address", "add", f"{address}/24", "dev", "veth0")
        host.run("ip", "link", "set", "veth0", "up")
    yield left, right
    for host in (left, right):
        host.end()


def pipelines(title: str, pair: Pair) -> list[str]:
    """The README's lines for the one host and for the other."""
    section = re.search(rf"(?ms)^### {re.escape(title)}\n(.*?)(?=^##)", README)[1]
    found = re.findall(r"(?s)```sh\n(.*?)```", section)
    assert len(found) == 2
    python = shlex.quote(sys.executable)
    return [
        code.replace("-h broker", "-h 10.0.0.1").replace(".venv/bin/python", python)
        .replace(".py", f".py -n {pair.name}")
        for code in found
    ]  # fmt: skip


def through(
    hosts: tuple[Host, Host], pair: Pair, title: str, broker: Callable[[], Process]
) -> list[int]:
    """The numbers that come out on the right, when the broker is killed and started on the way."""
    left, right = hosts
    here, there = pipelines(title, pair)
    running = broker()
    right.start("bash", "-c", there)
    left.start("bash", "-c", here)
    result = right.start(*pair.argv("server", "--json"))
    sent = 0

    def send(number: int) -> None:
        nonlocal sent
        lines = "".join(f'{{"n": {n}}}\n' for n in range(sent, sent + number))
        sent += number
        left.run(*pair.argv("client", "--stdin", "-q"), input=lines, env=ENV)

    def arrived() -> set[int]:
        return {json.loads(line)["n"] for line in list(result.out)}

    send(20)
    until(lambda: len(arrived()) == 20, "the first twenty", 60)
    running.stop()
    send(20)  # while there is no broker
    running = broker()
    send(20)
    until(lambda: len(arrived()) == MESSAGES, f"all: {sorted(arrived())}", 60)
    return [json.loads(line)["n"] for line in result.out]


def test_mosquitto(hosts, make_pair, tmp_path):
    pair = make_pair("posix", "msq")
    (tmp_path / "broker.conf").write_text(
        f"listener 1883 10.0.0.1\nallow_anonymous true\n"
        f"persistence true\npersistence_location {tmp_path}/\nuser root\n"
    )

    def broker() -> Process:
        process = hosts[0].start("mosquitto", "-c", str(tmp_path / "broker.conf"))
        until(lambda: "1883" in hosts[0].run("ss", "-ltn"), "the broker listens")
        return process

    numbers = through(hosts, pair, "MQTT", broker)
    assert sorted(set(numbers)) == list(range(MESSAGES))  # QoS 1: at least once


def test_redis_streams(hosts, make_pair, tmp_path):
    pair = make_pair("posix", "msq")

    def broker() -> Process:
        process = hosts[0].start(
            "redis-server", "--bind", "10.0.0.1", "--protected-mode", "no", "--dir", str(tmp_path),
            "--appendonly", "yes", "--appendfsync", "always",
        )  # fmt: skip
        until(lambda: "6379" in hosts[0].run("ss", "-ltn"), "the broker listens")
        return process

    numbers = through(hosts, pair, "Redis Streams", broker)
    assert numbers == list(range(MESSAGES))
