"""Which line would no test miss? `make mutants`, or `make mutants FILE=scripts/common.py`.

In a copy of the tree, one statement of a script after the other is deleted, one condition is
negated, or one part of a line is left out (an operand of `and`, an argument, one of several items);
or one setting of a unit, or one line of a recipe of the Makefile is deleted. Then the
tests that use the file are run, and each change that none of them noticed is printed. It shows a
test that is missing, or a line that can go. FILE= tries every change of one file; without it a
sample of all changes is tried, whose size and seed are printed.
"""

import argparse
import ast
import collections
import concurrent.futures
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# What is tried: every file that a user runs.
FILES = ["scripts/*.py", "Makefile", "systemd/*.service", "systemd/*.target", "systemd/*.socket",
         "systemd/*/*.conf", "systemd/*.conf"]  # fmt: skip
# Not for scripts: services have a manager of their own, the benchmark takes long, and that a line
# is quoted on a page does not mean that a test has seen what it does.
NOT_FOR_SCRIPTS = {
    f"test_{name}.py" for name in ("systemd", "beyond", "bench", "make", "pages")
}  # fmt: skip
SECONDS = 120  # for the tests of one change; one that makes them hang has been noticed
WORKERS = 2 * (os.cpu_count() or 1)  # much of a test is waiting
FAILURE = re.compile(r"^(FAILED|ERROR) (tests/\S+?\.py::.+?)(?: - .*)?$", re.M)
# Changes that change nothing: the text that is deleted or negated, and why nobody can notice.
EQUIVALENT = {
    "the last return 0": "main() returns None then, and sys.exit(None) is the status 0 too",
}


class Mutant(NamedTuple):
    path: str
    line: int
    what: str
    text: str
    new: bytes  # all of the changed file

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}: {self.text}"


def of_python(path: str, source: bytes) -> list[Mutant]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def change(node: ast.stmt | ast.expr, what: str, form: bytes) -> None:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source[start:end]
        new = source[:start] + form.replace(b"OLD", old) + source[end:]
        found.append(Mutant(path, node.lineno, what, old.decode().splitlines()[0], new))

    def leave_out(items: Sequence[ast.expr | ast.keyword]) -> None:
        """Each of what stands between commas, with one of them."""
        ends = [starts[item.end_lineno - 1] + item.end_col_offset for item in items]
        begins = [starts[item.lineno - 1] + item.col_offset for item in items]
        for number, item in enumerate(items):
            begin, end = begins[number], ends[number]
            if number:
                begin = ends[number - 1]
            elif len(items) > 1:
                end = begins[1]
            text = source[begins[number] : ends[number]].decode().splitlines()[0]
            found.append(Mutant(path, item.lineno, "left out", text, source[:begin] + source[end:]))

    keep = ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass
    tree = ast.parse(source)
    last = {node.body[-1] for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        a_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not isinstance(node, keep) and not a_text:
            change(node, "deleted", b"pass")
            if node in last and ast.unparse(node) == "return 0":
                found[-1] = found[-1]._replace(text="the last return 0")
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            change(node.test, "negated", b"(not (OLD))")
        for condition in getattr(node, "ifs", []):  # of a comprehension
            change(condition, "negated", b"(not (OLD))")
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                change(value, "left out", b"True" if isinstance(node.op, ast.And) else b"False")
        if isinstance(node, ast.Set | ast.List | ast.Tuple) and len(node.elts) > 2:
            leave_out(node.elts)
        if isinstance(node, ast.Call):
            leave_out(node.keywords)
    return found


def of_lines(path: str, source: bytes) -> list[Mutant]:
    """Of a Makefile, a line of a recipe, with those that it is continued on; of a unit, any."""
    form = rb"^\t(?:.*\\\n)*.*\n" if path == "Makefile" else rb"^\w.*\n"
    new = b"\t@:\n" if path == "Makefile" else b""
    return [
        Mutant(
            path,
            source[: found.start()].count(b"\n") + 1,
            "deleted",
            found[0].decode().strip().splitlines()[0],
            source[: found.start()] + new + source[found.end() :],
        )
        for found in re.finditer(form, source, re.M)
    ]


def mutants_of(path: str) -> list[Mutant]:
    source = (ROOT / path).read_bytes()
    return (of_python if path.endswith(".py") else of_lines)(path, source)


class Tree:
    """A copy of the tree, in which the tests are run in namespaces of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache")
        )
        self.copy_environment()

    def copy_environment(self) -> None:
        """What a changed Makefile does to .venv, it does to a copy."""
        shutil.rmtree(self.folder / ".venv", ignore_errors=True)
        shutil.copytree(ROOT / ".venv", self.folder / ".venv", symlinks=True)

    def test(self, *args: str, seconds: float = SECONDS) -> tuple[int, str]:
        """Return the exit status of pytest (-1: it took too long), and its output."""
        script = (
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mount -t tmpfs -o mode=1777 tmpfs /tmp;"
            "mkdir -p /dev/mqueue; mount -t mqueue mqueue /dev/mqueue; ip link set lo up;"
            f"exec {shlex.quote(sys.executable)} -B -m pytest -q -p no:cacheprovider"
            " --tb=line -rfE --no-header @$ARGUMENTS"
        )
        arguments = self.folder / "arguments"
        arguments.write_text("\n".join(args))
        spaces = "--ipc --mount --net --pid --fork --kill-child --mount-proc"
        process = subprocess.Popen(
            ["unshare", *spaces.split(), "sh", "-c", script],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "ARGUMENTS": str(arguments), "PATIENCE": "10",
                 "SECOND_TRY": "no", "USES": str(self.folder / "uses")},
            start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=seconds)
            return process.returncode, out
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and with it all that runs in its namespaces
            process.communicate()
            return -1, ""


def uses(tree: Tree) -> dict[str, list[str]]:
    """Run the tests once without a change; return those that use each script, quick ones first."""
    tests = sorted(tree.folder.glob("tests/test_*.py"))
    files = [f"tests/{path.name}" for path in tests if path.name not in NOT_FOR_SCRIPTS]
    status, out = tree.test(f"-n{WORKERS}", "--dist=loadgroup", *files, seconds=1500)
    failed = {name for _, name in FAILURE.findall(out)}
    if status not in (0, 1):
        sys.exit(f"the tests cannot be run:\n{out}")
    for name in failed:
        print(f"fails without a change, so it is left out: {name}")
    seconds: dict[str, float] = {}
    found: dict[str, set[str]] = collections.defaultdict(set)
    for line in (tree.folder / "uses").read_text().splitlines():
        test, what = line.split("\t")
        if test in failed:
            continue
        if what.startswith("scripts/"):
            found[what].add(test)
            found["scripts/common.py"].add(test)
        else:
            seconds[test] = float(what)
    return {
        path: sorted(tests, key=lambda test: seconds.get(test, 60)) for path, tests in found.items()
    }


def survives(mutant: Mutant, tree: Tree, tests: list[str]) -> bool:
    path = tree.folder / mutant.path
    before = path.read_bytes()
    path.write_bytes(mutant.new)
    try:
        status, out = tree.test("-x", *tests)
        for _ in range(2):  # RLIMIT_MSGQUEUE: others run too, on this machine
            if "number of files open" in out:
                time.sleep(5)
                status, out = tree.test("-x", *tests)
    finally:
        path.write_bytes(before)
        if mutant.path == "Makefile":
            tree.copy_environment()
    if caught := FAILURE.search(out):
        if caught[2] in tests:  # what saw one change sees another: it goes first from now on
            tests.remove(caught[2])
            tests.insert(0, caught[2])
    elif status not in (0, -1, 1, 2):
        sys.exit(f"{mutant}: pytest ended with {status}:\n{out}")
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="*", help="a file all of whose changes are tried")
    parser.add_argument("--sample", type=int, default=60, help="how many changes (%(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of the sample (%(default)s)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("make mutants needs root, who may make namespaces for the tests")
    if ROOT.is_relative_to("/tmp"):
        sys.exit("make mutants gives the tests a /tmp of their own: have the checkout elsewhere")
    began = time.monotonic()
    paths = args.file or sorted(
        str(path.relative_to(ROOT)) for form in FILES for path in ROOT.glob(form)
    )
    every = [mutant for path in paths for mutant in mutants_of(path)]
    tried = [mutant for mutant in every if mutant.text not in EQUIVALENT]
    print(f"{len(every)} changes, of which {len(every) - len(tried)} are known to change nothing")
    if not args.file and args.sample < len(tried):
        tried = random.Random(args.seed).sample(tried, args.sample)
        print(f"a sample of {len(tried)} of them, with the seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mutants-") as folder:
        trees: queue.Queue[Tree] = queue.Queue()
        for number in range(WORKERS):
            trees.put(Tree(Path(folder) / str(number)))
        tests: dict[str, list[str]] = collections.defaultdict(lambda: ["tests/test_systemd.py"])
        tests["Makefile"] = ["tests/test_make.py"]
        if any(mutant.path.startswith("scripts/") for mutant in tried):
            tests.update(uses(trees.queue[0]))
        survivors = []

        def attempt(mutant: Mutant) -> None:
            tree = trees.get()
            try:
                if survives(mutant, tree, tests[mutant.path]):
                    survivors.append(mutant)
                    print(mutant, flush=True)
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            for done in concurrent.futures.as_completed([pool.submit(attempt, m) for m in tried]):
                done.result()
    killed = len(tried) - len(survivors)
    minutes = (time.monotonic() - began) / 60
    share = f"{killed} of {len(tried)} changes noticed ({killed / len(tried):.0%})"
    print(f"{share}, in {minutes:.1f} minutes")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
