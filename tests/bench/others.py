"""Other ways from process to process in Python, with the same JSON and the same printing.

others.py queue COUNT                    multiprocessing.Queue, server and client
others.py socket server|client PATH COUNT    a Unix datagram socket
"""

import json
import multiprocessing
import socket
import sys
from datetime import datetime

sys.stdout.reconfigure(line_buffering=True)


def show(body: bytes) -> None:
    value = json.loads(body)
    print(f"{datetime.now().time().isoformat('microseconds')} {value!r}")


def serve_queue(queue: "multiprocessing.Queue[bytes]") -> None:
    while body := queue.get():
        show(body)


def main() -> None:
    if sys.argv[1] == "queue":
        queue: multiprocessing.Queue[bytes] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve_queue, args=(queue,))
        server.start()
        for number in range(1, int(sys.argv[2]) + 1):
            queue.put(json.dumps({"count": number}).encode())
        queue.put(b"")
        server.join()
        return
    side, path, count = sys.argv[2], sys.argv[3], int(sys.argv[4])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if side == "server":
        sock.bind(path)
        print("start")
        for _ in range(count):
            show(sock.recv(8192))
    else:
        sock.connect(path)
        for number in range(1, count + 1):
            sock.send(json.dumps({"count": number}).encode())


if __name__ == "__main__":
    main()
