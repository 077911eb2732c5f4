"""Every command of the README is run, in order, and prints what the README shows."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ENV, ROOT

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?```console\n(?P<text>.*?)```", re.S)


def normal(line: str) -> str:
    """A line without what differs from run to run: times, ids, owners and columns."""
    line = re.sub(r"^\d\d:\d\d:\d\d\.\d{6}", "TIME", line)
    if line.startswith("0x"):
        key, _id, _owner, *rest = line.split()
        return " ".join([key, *rest])
    return line.rstrip()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(normal(line))
    return found


@pytest.fixture
def inside(tmp_path):
    """A copy of the checkout, and a shell with IPC objects of its own, under their real names."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces in which /test and 200 are nobody else's")
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (ROOT / ".venv" / ".setup").touch()
    mounts = (
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mkdir -p /dev/mqueue;"
        "mount -t mqueue mqueue /dev/mqueue; echo ready; read _ || true"
    )
    spaces = subprocess.Popen(
        ["unshare", "--mount", "--ipc", "sh", "-ec", mounts],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert spaces.stdout.readline() == b"ready\n"

    def start(command: str) -> subprocess.Popen[str]:
        enter = ["nsenter", "-t", str(spaces.pid), "--mount", "--ipc", f"--wd={folder}"]
        return subprocess.Popen(
            [*enter, "bash", "-c", command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**ENV, "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip

    yield start
    spaces.stdin.close()
    spaces.wait(20)


def test_every_command_prints_what_the_readme_shows(inside):
    server, expected, seen = None, [], 0
    count = 0

    def end() -> None:
        """Ctrl-C in the first terminal, when the server has printed what it is to print."""
        nonlocal server
        if server:
            lines = [server.stdout.readline() for _ in expected[seen:-1]]
            os.killpg(server.pid, signal.SIGINT)
            lines += server.communicate(timeout=20)[0].splitlines()
            assert [normal(line.rstrip("\n")) for line in lines] == expected[seen:]
            server = None

    for block in BLOCK.finditer(README):
        mark = block["mark"] or ""
        if mark.startswith("skip"):
            assert mark.startswith("skip, for "), "says why"
            continue
        if mark in ("stop", "server"):
            end()
        for command, lines in commands(block["text"]):
            count += 1
            process = inside(command)
            if mark == "server":
                server, expected = process, lines
                seen = 1 if "-msq-" in command else 2  # what it prints of itself
                for line in lines[:seen]:
                    assert normal(process.stdout.readline().rstrip("\n")) == line
                continue
            out = process.communicate(timeout=60)[0]
            assert [normal(line) for line in out.splitlines()] == lines, command
            time.sleep(0.05 if server else 0)  # a server that looks now and then sees each change
    end()
    assert count > 40


def test_what_the_readme_names_exists():
    targets = subprocess.run(
        ["make", "-npq"], cwd=ROOT, capture_output=True, text=True, env=ENV
    ).stdout
    known = set(re.findall(r"(?m)^([a-z][a-z-]*):", targets))
    named = set(re.findall(r"(?m)`make ([a-z-]+)", README))
    named |= set(re.findall(r"(?m)^\$ (?:echo [^|]*\| )?make ([a-z-]+)", README))
    assert named <= known, named - known
    for path in re.findall(r"\]\(((?!http|#)[^)#]+)\)", README):
        assert (ROOT / path.split()[0]).exists(), path
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"(?m)^#+ (.+)$", README)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    units = {path.stem for path in (ROOT / "systemd").iterdir()}
    units |= {"ipc-msq-server", "ipc-shm-server", "ipc-sem-server", "ipc-"}
    assert {name.removesuffix("-") for name in re.findall(r"ipc-[a-z]+-[a-z-]+", README)} <= units
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for test in re.findall(r"`(test_\w+)`", README):
        assert f"def {test}(" in sources or Path(ROOT, "tests", f"{test}.py").exists(), test
    for test in re.findall(r'\]\(tests/\w+\.py "(\w+)"\)', README):
        assert f"def {test}(" in sources, test
    scripts = "\n".join(path.read_text() for path in (ROOT / "scripts").glob("*.py"))
    tools = {"--enable", "--now", "--user", "--clear-groups"}
    for line in re.findall(r"(?m)^\$ .*scripts/\w+\.py (.*)$", README):
        for option in set(re.findall(r"(?<!\S)(--[a-z-]{2,})", line)) - tools:
            assert f'"{option}"' in scripts, option
