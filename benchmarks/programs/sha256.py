"""sha256.py PORT: for each connection, hash as many bytes as its one line says, and answer the seconds that took."""

from __future__ import annotations

import hashlib
import socketserver
import sys
import time

BLOCK = 512 * 1024  # as the gateway's


class Hashing(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        left = int(self.rfile.readline() or 0)
        block, digest, began = memoryview(bytearray(BLOCK)), hashlib.sha256(), time.perf_counter()
        while left > 0:
            digest.update(block[:left])
            left -= BLOCK
        self.wfile.write(f"{time.perf_counter() - began}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(sys.argv[1])), Hashing) as server:
    server.serve_forever()
