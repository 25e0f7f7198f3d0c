"""digest.py PORT DIGEST: for each connection, hash so many bytes as its one line says, and answer how many seconds that
took."""

from __future__ import annotations

import hashlib
import socketserver
import sys
import time

from blake3 import blake3

BLOCK = 512 * 1024  # as the gateway's
DIGESTS = {"sha256": hashlib.sha256, "blake3": blake3}


class Hashing(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        left = int(self.rfile.readline() or 0)
        block, digest, began = memoryview(bytearray(BLOCK)), DIGESTS[sys.argv[2]](), time.perf_counter()
        while left > 0:
            digest.update(block[:left])
            left -= BLOCK
        self.wfile.write(f"{time.perf_counter() - began}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(sys.argv[1])), Hashing) as server:
    server.serve_forever()
