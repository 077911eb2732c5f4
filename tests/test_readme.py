"""Every command of every page is run, in order, and prints what the page shows."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc
from conftest import BLOCK, ENV, ROOT, copy_checkout, pages, until

PAGES = pages()
# The folder of what has only to exist: programs and lines of a trap are run by tests of their own.
TRAPS = (ROOT / "tests/test_traps.py").read_text()


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
def inside(tmp_path, apart):
    """A copy of the checkout, and a shell with IPC objects of its own, under their real names."""
    folder = tmp_path / "checkout"
    copy_checkout(folder)

    def start(command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A command, and the file that it prints to."""
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        process = subprocess.Popen(
            [*apart, f"--wd={folder}", "bash", "-c", f"{command}\nexit"],  # or it would exec it
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
            process.wait()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_shows(inside, page):
    start, folder = inside
    server, path, expected = None, Path(), []

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

    for block in BLOCK.finditer(PAGES[page]):
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


def test_there_are_commands_to_run():
    for page, least in {"README.md": 20, "scripts/README.md": 60}.items():
        shown = [b for b in BLOCK.finditer(PAGES[page]) if not (b["mark"] or "").startswith("skip")]
        assert sum(block["text"].count("\n$ ") + 1 for block in shown) > least


def anchors(text: str) -> set[str]:
    """What a code host makes of the titles of a page."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", text)  # a comment of a shell is no title
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"(?m)^#+ (.+)$", text)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGES[page]):
        name, _, anchor = link.split()[0].partition("#")
        path = os.path.normpath(Path(page).parent / name) if name else page
        assert (ROOT / path).exists(), link
        if anchor:
            assert anchor in anchors(PAGES[path]), link


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = PAGES[page]
    make = ["make", "-npq"]
    targets = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, env=ENV).stdout
    known = set(re.findall(r"(?m)^([a-z][a-z-]*):", targets))
    named = set(re.findall(r"(?m)`make ([a-z-]+)", text))
    named |= set(re.findall(r"(?m)^\$ (?:echo [^|]*\| )?make ([a-z-]+)", text))
    assert named <= known, named - known
    units = {path.stem for path in (ROOT / "systemd").iterdir()}
    units |= {"ipc-msq-server", "ipc-shm-server", "ipc-sem-server", "ipc-", "ipc-posix", "ipc-sysv"}
    assert {name.removesuffix("-") for name in re.findall(r"ipc-[a-z]+-[a-z-]*", text)} <= units
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    tests = set(re.findall(r"`(test_\w+)`", text)) | set(re.findall(r' "(test_\w+)"\)', text))
    for test in tests:
        assert f"def {test}(" in sources or Path(ROOT, "tests", f"{test}.py").exists(), test
    # A link to a test names the file that has it.
    for title, path, tip in re.findall(r'\[([^]]*)\]\(\S*?(\w+\.py)(?: "(\w+)")?\)', text):
        for test in {tip, title.strip("`")}:
            if test.startswith("test_") and not test.endswith(".py"):
                assert f"def {test}(" in (ROOT / "tests" / path).read_text(), (test, path)
    for file in re.findall(r"`((?:tests|scripts|systemd|\.ci)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file
    scripts = "\n".join(path.read_text() for path in (ROOT / "scripts").glob("*.py"))
    tools = {"--enable", "--now", "--user", "--clear-groups"}
    for line in re.findall(r"(?m)^\$ .*scripts/\w+\.py (.*)$", text):
        for option in set(re.findall(r"(?<!\S)(--[a-z-]{2,})", line)) - tools:
            assert f'"{option}"' in scripts, option


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    """Traps by test_traps.py, programs by test_programs.py, the brokers by test_beyond.py."""
    text = PAGES[page]
    for block in BLOCK.finditer(text):
        mark, kind = block["mark"] or "", block["kind"]
        title = re.findall(r"(?m)^##+ (.+)$", text[: block.start()])[-1]
        if kind in ("python", "c") and not mark.startswith(("file ", "program ")):
            assert f'"{title}"' in TRAPS, block["text"]
        if kind == "sh":
            assert mark == "test_beyond.py runs it", block["text"]
    kinds = re.findall(r"(?m)^ *```(\w+)$", text)
    others = kinds.count("mermaid") + kinds.count("ini")
    assert len(list(BLOCK.finditer(text))) == len(kinds) - others


def test_the_guide_is_at_most_600_lines():
    assert len(PAGES["README.md"].splitlines()) <= 600


def test_every_folder_has_its_page_and_links_to_it():
    for page in PAGES.keys() - {"README.md"}:
        assert f"]({page})" in PAGES["README.md"], page


@pytest.mark.parametrize("package", [posix_ipc, sysv_ipc])
def test_every_name_of_the_packages_is_on_a_page(package):
    names = {name for name in dir(package) if not name.startswith("__")}
    for kind in (package.MessageQueue, package.SharedMemory, package.Semaphore):
        names |= {name for name in dir(kind) if not name.startswith("_")}
    code = re.findall(r"`[^`\n]+`", "\n".join(PAGES.values()))
    words = set(re.findall(r"\w+", "".join(code)))
    assert names <= words, sorted(names - words)


def test_every_cure_is_on_the_page_of_the_errors():
    """What a script adds to an error, as it stands in its CURES."""
    for path in (ROOT / "scripts").glob("*_*.py"):
        scope: dict[str, dict[str, str]] = {}
        [cures] = re.findall(r"(?ms)^CURES = \{.*?\}$", path.read_text())
        exec(cures, scope)
        for words, cure in scope["CURES"].items():
            found = re.findall(rf"(?m)^.*{re.escape(cure)}.*$", PAGES["scripts/README.md"])
            assert any(words in line for line in found), (path.name, words, cure)
