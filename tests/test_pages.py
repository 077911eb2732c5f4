"""Every page: each command prints what the page shows, each program runs, each name exists."""

import ast
import json
import os
import posixpath
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import posix_ipc
import pytest
import sysv_ipc
from conftest import ENV, ROOT, Process, in_namespaces, in_no_chroot, needs, readme, state, until

# The pages, each with the number of lines that it must not exceed.
LONGEST = {
    "README.md": 600,
    "scripts/README.md": 1200,
    "systemd/README.md": 200,
    "tests/README.md": 200,
    "tests/bench/README.md": 400,
}
PAGES = {page: (ROOT / page).read_text() for page in LONGEST if (ROOT / page).exists()}
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?"
    r"^ *```(?P<kind>console|python|sh|c|ini)\n(?P<text>.*?)^ *```",
    re.S | re.M,
)


class Program(NamedTuple):
    page: str
    path: str  # below the top folder
    text: str


def programs() -> list[Program]:
    """The blocks that are whole programs: a mark, or the words before them, name the file."""
    found = []
    for page, text in PAGES.items():
        for block in BLOCK.finditer(text):
            mark = block["mark"] or ""
            if mark.startswith("file "):
                found.append(Program(page, mark.removeprefix("file "), block["text"]))
            elif block["kind"] in ("python", "c") and page == "README.md":
                named = re.findall(r"`(mine/\w+\.\w+)`", text[: block.start()])[-1]
                found.append(Program(page, named, block["text"]))
    return found


def normal(line: str) -> str:
    """A line without what differs from run to run: times, ids, owners, columns and the load."""
    line = re.sub(r"^\d\d:\d\d:\d\d\.\d{6}", "TIME", line)
    line = re.sub(r"^TIME \d+\.\d\d$", "TIME LOAD", line)
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


class Terminal:
    """Commands in a folder, inside namespaces, and the lines that all of them have printed."""

    def __init__(self, enter: list[str], out: Path) -> None:
        self.enter = enter
        self.out = out
        self.out.touch()
        self.running: list[subprocess.Popen[bytes]] = []
        self.expected: list[str] = []

    def start(self, command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.enter, "bash", "-c", command],
            stdin=subprocess.DEVNULL, stdout=self.out.open("ab"), stderr=subprocess.STDOUT,
            env={**ENV, "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    @property
    def printed(self) -> list[str]:
        """Without what GNU Make says when its child ends in the moment of Ctrl-C: it waits for the
        child in the handler of the signal, when the wait that the signal interrupted has had it."""
        makes = ("make: *** wait: No child", "make: *** Waiting for unfinished jobs")
        lines = self.out.read_text().splitlines()
        return [normal(line) for line in lines if not line.startswith(makes)]

    def wait(self, command: str) -> None:
        try:
            until(lambda: self.printed[: len(self.expected)] == self.expected)
        except AssertionError:
            assert self.printed == self.expected, command  # shows the difference

    def run(self, command: str, lines: list[str]) -> None:
        """One line of a console: `... &` stays, `kill %1` ends it, `^C` ends one in front."""
        ctrl_c = lines[-1:] == ["^C"]
        self.expected += [line for line in lines if line != "^C"]
        *behind, front = re.split(r" &(?: |$)(?!&)", command)
        for job in behind:
            self.start(f"exec {job}")
        if jobs := re.findall(r"%(\d)", front if front.startswith("kill ") else ""):
            for number in jobs:
                self.running[int(number) - 1].terminate()
                self.running[int(number) - 1].wait(20)
            self.more()
        elif ctrl_c:
            process = self.start(front)
            self.wait(command)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(20)
            self.running.remove(process)
            self.more()
        elif front:
            process = self.start(f"{front}\nexit")  # without exit bash becomes the last command
            process.wait(60)
            self.running.remove(process)
        self.wait(command)
        assert self.printed == self.expected, command

    def more(self) -> None:
        """What is printed until a signal comes may be printed more often than the page shows."""
        more = self.printed[len(self.expected) :]
        assert set(more) <= set(self.expected), more
        self.expected += more

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.fixture
def terminal(tmp_path):
    """A copy of the checkout, and terminals with IPC objects of their own, under their names."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    mounts = (
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mkdir -p /dev/mqueue;"
        "mount -t mqueue mqueue /dev/mqueue; echo ready; read _ || true"
    )
    spaces = subprocess.Popen(
        ["unshare", "--mount", "--ipc", "sh", "-ec", mounts],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert spaces.stdout.readline() == b"ready\n"
    enter = ["nsenter", "-t", str(spaces.pid), "--mount", "--ipc", f"--wd={folder}"]
    opened: list[Terminal] = []

    def another() -> Terminal:
        opened.append(Terminal(enter, tmp_path / f"out{len(opened)}"))
        return opened[-1]

    yield another, folder
    for each in opened:
        each.end()
    spaces.stdin.close()
    spaces.wait(20)


@in_namespaces
@in_no_chroot
@needs("cc", "nsenter", "ipcs", "ipcrm")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_shows(page, terminal):
    another, folder = terminal
    if "numpy" in PAGES[page]:
        pytest.importorskip("numpy")
    for program in programs():
        if program.page == page:
            path = folder / program.path
            path.parent.mkdir(exist_ok=True)
            path.write_text(program.text)
    server: Terminal | None = None
    lines: list[str] = []
    count = 0

    def end() -> None:
        """Ctrl-C in the first terminal, when the server has printed what it is to print."""
        nonlocal server
        if server:
            server.expected = [line for line in lines if line != "^C"]
            if "^C" in lines:  # else it ends by itself
                server.expected = lines[: lines.index("^C")]
                server.wait("what the server prints")
                os.killpg(server.running[0].pid, signal.SIGINT)
            server.expected = [line for line in lines if line != "^C"]
            server.running[0].wait(20)
            assert server.printed == server.expected
            server = None

    for block in BLOCK.finditer(PAGES[page]):
        mark = block["mark"] or ""
        if mark.startswith("skip") or block["kind"] != "console":
            continue
        if mark in ("stop", "server"):
            end()
        here = another()
        for command, shown in commands(block["text"]):
            count += 1
            if mark != "server":
                here.run(command.replace("mkdir mine", "mkdir -p mine"), shown)
                # A server that looks now and then has to see each change.
                if server and "sem" in " ".join(lines) and shown:
                    changed = re.fullmatch(r"semaphore: \d+", shown[-1])
                    there = server
                    until(lambda: not changed or there.printed[-1] == f"TIME {shown[-1]}")
                continue
            server, lines = here, shown
            server.start(f"{command}\nexit")
            # What it prints of itself, before anything is sent or written.
            server.expected = shown[: 1 if "msq" in command or "notify" in command else 2]
            server.wait(command)
        if mark != "server":
            here.end()
    end()
    assert count >= {"README.md": 30, "scripts/README.md": 80}.get(page, 0)


def test_a_page_has_its_length():
    for page, text in PAGES.items():
        assert len(text.splitlines()) <= LONGEST[page], page


def test_every_block_is_run_or_says_why_not():
    """Shell in test_every_command..., the traps in test_traps.py, the brokers in test_beyond.py."""
    whole = {program.text for program in programs()}
    for page, text in PAGES.items():
        blocks = list(BLOCK.finditer(text))
        for block in blocks:
            mark, kind = block["mark"] or "", block["kind"]
            if mark.startswith("skip"):
                assert mark.startswith("skip, for "), f"says why: {block['text']}"
            elif kind in ("python", "c"):
                trap = text.rfind("## Traps", 0, block.start()) >= 0
                assert block["text"] in whole or trap, block["text"]
            elif kind == "sh":
                assert mark == "test_beyond.py runs it", block["text"]
        kinds = re.findall(r"(?m)^ *```(\w+)$", text)
        assert len(blocks) + kinds.count("mermaid") + kinds.count("text") == len(kinds), page


def test_a_whole_program_is_short_and_well_formed(tmp_path):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("needs ruff: make lint installs it")
    found = [program for program in programs() if program.page == "README.md"]
    assert len(found) >= 10
    shutil.copytree(ROOT / "scripts", tmp_path / "mine")
    python = []
    for program in found:
        assert len(program.text.splitlines()) <= 40, program.path
        path = tmp_path / program.path
        path.write_text(program.text)
        if path.suffix == ".py":
            python.append(path)
        elif shutil.which("cc"):
            flags = ["-Wall", "-Wextra", "-Werror", "-O2"]
            subprocess.run(["cc", *flags, "-o", path.with_suffix(""), path, "-lrt"], check=True)
    for action in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [ruff, *action, "--config", ROOT / ".ruff.toml", "--no-cache", *python],
            capture_output=True, text=True, cwd=tmp_path / "mine",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def mine(tmp_path) -> Callable[[str, dict[str, str]], Path]:
    """The folder of the whole programs, with other names for their objects."""
    shutil.copytree(ROOT / "scripts", tmp_path / "mine")

    def write(name: str, names: dict[str, str]) -> Path:
        for program in programs():
            text = program.text
            for old, new in names.items():
                text = text.replace(old, new)
            if program.page == "README.md":
                (tmp_path / program.path).write_text(text)
        return tmp_path / "mine" / name

    return write


@pytest.mark.parametrize("name", ["limit.py", "limit_asyncio.py"])
def test_ctrl_c_ends_a_program_that_waits_at_once(mine, name, make_pair):
    """All three are taken by the test, so that the program waits, in threads or in tasks."""
    pair = make_pair("sysv", "sem")
    semaphore = sysv_ipc.Semaphore(pair.key, sysv_ipc.IPC_CREX)
    semaphore.release(delta=3)
    semaphore.acquire(delta=3)
    with Process([sys.executable, str(mine(name, {"300": str(pair.key)}))]) as process:
        if name == "limit.py":
            until(lambda: semaphore.waiting_for_nonzero == 5, "five threads wait")
        else:
            # asyncio ends a task that has not begun by another error (CancelledError).
            until(lambda: "eventpoll" in open_files(process.pid) and state(process.pid) == "S")
        assert process.out == []
        assert process.stop(signal.SIGINT, timeout=5) == -signal.SIGINT
        assert process.out == []
    assert semaphore.value == 0
    semaphore.release(delta=3)
    done = subprocess.run([sys.executable, mine(name, {"300": str(pair.key)})], timeout=20)
    assert (done.returncode, semaphore.value) == (0, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_interrupts_no_work_of_the_listener(mine, make_pair, number):
    pair = make_pair("posix", "msq")
    work = 'print("begin", flush=True)\n        await asyncio.sleep(0.3)\n        print("end")'
    line = 'common.put(body.decode(errors="backslashreplace"))'
    names = {'"/events"': f'"{pair.name}"', line: work}
    with Process([sys.executable, str(mine("listen.py", names))]) as listener:
        listener.wait_line("listening")
        pair.client("-c1")
        listener.wait_line("begin")
        assert listener.stop(number) == 0
        assert listener.out == ["listening", "begin", "end"]


def test_what_is_no_text_ends_no_listener(mine, make_pair):
    pair = make_pair("posix", "msq")
    with Process(
        [sys.executable, str(mine("listen.py", {'"/events"': f'"{pair.name}"'}))]
    ) as listener:
        listener.wait_line("listening")
        until(pair.exists)
        with pair.opened() as queue:
            queue.send(b"caf\xe9 \x1b[31m")
        listener.wait_line(r"caf\xe9 \x1b[31m")
        assert listener.stop() == 0


def test_a_listener_that_is_cancelled_watches_nothing_any_more(mine, make_pair):
    """Or the event loop would call what waits no more, for as long as a message is there."""
    pair = make_pair("posix", "msq")
    mine("listen.py", {})
    code = f"""
import asyncio, listen
async def main():
    queue = listen.open_queue("{pair.name}")
    task = asyncio.ensure_future(anext(listen.messages(queue, ())))
    await asyncio.sleep(0)  # it has begun to wait
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print(task.cancelled(), asyncio.get_running_loop().remove_reader(queue.mqd))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=mine("", {}), env=ENV, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_the_worker_outlives_what_is_no_job(mine, make_pair):
    """Names at which posix_ipc crashes, text without end, and an asker who does not read."""
    pair, answers = make_pair("posix", "msq"), make_pair("posix", "msq")
    names = {'"/jobs"': f'"{pair.name}"', "timeout=5": "timeout=0"}
    queue = posix_ipc.MessageQueue(answers.name, posix_ipc.O_CREX, max_messages=1)
    job = json.dumps({"answer": answers.name, "path": "/etc/passwd"}).encode()
    with Process([sys.executable, str(mine("worker.py", names))], cwd="/") as worker:
        worker.wait_line("waiting for jobs")
        jobs = posix_ipc.MessageQueue(pair.name)
        before = open_files(worker.pid)
        for body in (rb'{"answer": "/a\u0000b"}', rb'{"answer": "/\ud800"}', b"[" * 8000, b"5"):
            jobs.send(body)
        jobs.send(json.dumps({"answer": answers.name, "path": 10**30}).encode())
        for _ in range(3):  # for the second and the third there is no room
            jobs.send(job)
        until(lambda: jobs.current_messages == 0)
        size = {"bytes": os.path.getsize("/etc/passwd")}
        assert json.loads(queue.receive(20)[0]) == size
        until(lambda: open_files(worker.pid) == before)
        jobs.send(job)
        assert json.loads(queue.receive(20)[0]) == size
        assert worker.stop() == 0
    assert sum(line.startswith("no answer:") for line in worker.out) == 7


def open_files(pid: int) -> str:
    folder = Path(f"/proc/{pid}/fd")
    links = []
    for path in folder.iterdir():
        try:
            links.append(os.readlink(path))
        except OSError:  # closed in between
            continue
    return " ".join(links)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = PAGES[page]
    targets = subprocess.run(
        ["make", "-npq"], cwd=ROOT, capture_output=True, text=True, env=ENV
    ).stdout
    known = set(re.findall(r"(?m)^([a-z][a-z-]*):", targets))
    named = set(re.findall(r"`make ([a-z-]+)", text)) - {"it"}
    named |= set(re.findall(r"(?m)^\$ (?:echo [^|]*\| )?make ([a-z-]+)", text))
    assert named <= known, named - known
    units = {path.stem for path in (ROOT / "systemd").iterdir()}
    units |= {"ipc-msq-server", "ipc-shm-server", "ipc-sem-server", "ipc-posix", "ipc-sysv", "ipc"}
    for name in re.findall(r"(?<![\w/.-])ipc-[a-z-]+", text):
        assert name.rstrip("-") in units, name
    scripts = "\n".join(path.read_text() for path in (ROOT / "scripts").glob("*.py"))
    tools = {"--enable", "--now", "--user", "--clear-groups"}
    for line in re.findall(r"(?m)^\$ .*scripts/\w+\.py (.*)$", text):
        for option in set(re.findall(r"(?<!\S)(--[a-z-]{2,})", line)) - tools:
            assert f'"{option}"' in scripts, option
    for script in re.findall(r"\b((?:posix|sysv)_\w+)\.py", text):
        assert (ROOT / "scripts" / f"{script}.py").exists(), script


def anchors(text: str) -> set[str]:
    """What a code host makes of the headings."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    }


# Written by others, for the rows of the fault table, until it is there.
TO_COME: set[str] = set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target, title in re.findall(r'\]\(((?!https?:)[^) ]+)(?: "([^"]+)")?\)', PAGES[page]):
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        if path in TO_COME and not (ROOT / path).exists():
            continue
        assert (ROOT / path).exists(), target
        if anchor:
            assert anchor in anchors((ROOT / path).read_text()), target
        if title:
            assert f"def {title}(" in (ROOT / path).read_text(), title
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for test in re.findall(r"`(test_\w+)`", PAGES[page]):
        assert f"def {test}(" in sources or Path(ROOT, "tests", f"{test}.py").exists(), test


def test_every_file_of_the_tests_is_on_their_page():
    for path in (ROOT / "tests").iterdir():
        if path.suffix in (".py", ".sh", ".c"):
            assert f"]({path.name})" in PAGES["tests/README.md"], path.name


@pytest.mark.parametrize("package", [posix_ipc, sysv_ipc])
def test_every_name_of_the_packages_is_on_a_page(package):
    names = {name for name in dir(package) if not name.startswith("__")}
    for kind in (package.MessageQueue, package.SharedMemory, package.Semaphore):
        names |= {name for name in dir(kind) if not name.startswith("_")}
    words = set(re.findall(r"\w+", "".join(re.findall(r"`[^`\n]+`", readme()))))
    assert names <= words, sorted(names - words)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*_*.py")), ids=lambda p: p.stem)
def test_every_error_and_its_cure_are_on_the_page(script):
    """What a script says by itself, in CURES or when it raises: each text, or the longest part."""
    page = PAGES["scripts/README.md"]
    for node in ast.walk(ast.parse(script.read_text())):
        said: list[ast.expr] = []
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CURES":
            assert isinstance(node.value, ast.Dict)
            said = node.value.values
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            said = node.exc.args
        for text in said:
            parts = [c.value for c in ast.walk(text) if isinstance(c, ast.Constant)]
            longest = max((part for part in parts if isinstance(part, str)), key=len, default="")
            if longest != "stopped":  # which is not printed
                assert longest.strip() in page, longest


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
MMDC = shutil.which("mmdc") or shutil.which(CACHE / "mermaid-cli/node_modules/.bin/mmdc")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.xdist_group("mermaid")
@pytest.mark.skipif(not MMDC, reason="needs mermaid-cli, which .ci/run installs by npm")
@pytest.mark.skipif(not CHROMIUM, reason="needs chromium (Debian: apt-get install chromium)")
def test_every_diagram_can_be_drawn(tmp_path):
    """All in one go, for it is the browser's start that takes long."""
    found = {page: re.findall(r"(?ms)^```mermaid\n.*?^```$", text) for page, text in PAGES.items()}
    assert found["README.md"] and found["scripts/README.md"] and found["tests/README.md"]
    diagrams = [diagram for page in found.values() for diagram in page]
    (tmp_path / "all.md").write_text("\n\n".join(diagrams))
    config = tmp_path / "puppeteer.json"
    config.write_text(json.dumps({"executablePath": CHROMIUM, "args": ["--no-sandbox"]}))
    done = subprocess.run(
        [MMDC, "-q", "-p", config, "-i", tmp_path / "all.md", "-o", tmp_path / "page.md"],
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("page-*.svg"))) == len(diagrams)
