"""Every command of the README is run, in order, and prints what the README shows."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc
from conftest import ENV, ROOT, until

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?```(?P<kind>console|python|sh)\n(?P<text>.*?)```", re.S
)


def normal(line: str) -> str:
    """A line without what differs from run to run: times, ids, owners and columns."""
    line = re.sub(r"^\d\d:\d\d:\d\d\.\d{6}", "TIME", line)
    line = re.sub(r"with id \d+", "with id ID", line)
    line = re.sub(r"^bash: line 1: +\d+ Killed .*", "Killed", line)
    if line.startswith("0x"):
        key, _id, _owner, *rest = line.split()
        return " ".join([key, *rest])
    return " ".join(line.split())


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

    def start(command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A command, and the file that it prints to."""
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        enter = ["nsenter", "-t", str(spaces.pid), "--mount", "--ipc", f"--wd={folder}"]
        process = subprocess.Popen(
            [*enter, "bash", "-c", f"{command}\nexit"],  # or it would exec the last command
            stdin=subprocess.DEVNULL, stdout=out.open("wb"), stderr=subprocess.STDOUT,
            env={**ENV, "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        running.append(process)
        return process, out

    running: list[subprocess.Popen[bytes]] = []
    yield start, folder
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    spaces.stdin.close()
    spaces.wait(20)


def test_every_command_prints_what_the_readme_shows(inside):
    start, folder = inside
    server, path, expected = None, Path(), []
    count = 0

    def printed() -> list[str]:
        return [normal(line) for line in path.read_text().splitlines()]

    def end() -> None:
        """Ctrl-C in the first terminal, when the server has printed what it is to print."""
        nonlocal server
        if server:
            if expected[-1].startswith("end "):  # else it ends by itself
                until(lambda: printed() == expected[:-1], f"{expected}: {printed()}")
                os.killpg(server.pid, signal.SIGINT)
            server.wait(20)
            assert printed() == expected
            server = None

    for block in BLOCK.finditer(README):
        mark = block["mark"] or ""
        if mark.startswith("skip"):
            assert mark.startswith("skip, for "), "says why"
            continue
        if block["kind"] != "console":
            if mark.startswith("file "):
                Path(folder, mark.removeprefix("file ")).write_text(block["text"])
            continue
        if mark in ("stop", "server"):
            end()
        for command, lines in commands(block["text"]):
            count += 1
            process, out = start(command)
            if mark == "server":
                server, path, expected = process, out.rename(out.with_name("server")), lines
                # What it prints of itself, before anything is sent or written.
                alone = 1 if "msq" in command or "notify" in command else 2
                until(lambda: printed() == expected[:alone], f"{expected[:alone]}: {command}")
                continue
            process.wait(60)
            assert [normal(line) for line in out.read_text().splitlines()] == lines, command
            time.sleep(0.05 if server else 0)  # a server that looks now and then sees each change
    end()
    assert count > 80


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


def test_every_block_is_run_or_says_why_not():
    """Shell in test_every_command..., the traps in test_traps.py, the brokers in test_beyond.py."""
    traps = README.index("## Traps\n"), README.index("### And more\n")
    for block in BLOCK.finditer(README):
        mark, kind = block["mark"] or "", block["kind"]
        if kind == "python":
            in_traps = traps[0] < block.start() < traps[1]
            assert in_traps or mark.startswith("file "), block["text"]
        if kind == "sh":
            assert mark == "test_beyond.py runs it", block["text"]
    kinds = re.findall(r"(?m)^ *```(\w+)$", README)
    others = kinds.count("mermaid") + kinds.count("ini")
    assert len(list(BLOCK.finditer(README))) == len(kinds) - others


@pytest.mark.parametrize("package", [posix_ipc, sysv_ipc])
def test_every_name_of_the_packages_is_in_the_readme(package):
    names = {name for name in dir(package) if not name.startswith("__")}
    for kind in (package.MessageQueue, package.SharedMemory, package.Semaphore):
        names |= {name for name in dir(kind) if not name.startswith("_")}
    words = set(re.findall(r"\w+", "".join(re.findall(r"`[^`\n]+`", README))))
    assert names <= words, sorted(names - words)
