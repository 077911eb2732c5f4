"""Coverage-guided fuzzing, with atheris, of what a server does with bytes that it did not make.

    python tests/fuzz.py [SECONDS]

`make soak` runs it; hypothesis does the short form, through real queues, in test_hostile.py.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
with atheris.instrument_imports():
    queues = [importlib.import_module(f"{api}_msq_server") for api in ("posix", "sysv")]
    common = importlib.import_module("common")


OUT = os.memfd_create("output")


@contextlib.contextmanager
def descriptors_to(file: int) -> Iterator[None]:
    """Standard output and standard error go there, which the scripts write(2) to."""
    saved = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file, number)
    try:
        yield
    finally:
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number)
            os.close(copy)


def printed(show: Callable[..., None], *args: object) -> str:
    os.ftruncate(OUT, 0)
    os.lseek(OUT, 0, os.SEEK_SET)
    with descriptors_to(OUT):
        show(*args)
    os.lseek(OUT, 0, os.SEEK_SET)
    return os.read(OUT, 2**20).decode()


def one_input(data: bytes) -> None:
    texts = [printed(server.show, data, as_json) for server in queues for as_json in (False, True)]
    text = data.partition(b"\0")[0].decode(errors="backslashreplace")
    texts.append(printed(common.put, text, True))
    for text in texts:
        assert text.endswith("\n") and text[:-1].isprintable(), ascii(text)


if __name__ == "__main__":
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=8192"], one_input)
    atheris.Fuzz()
