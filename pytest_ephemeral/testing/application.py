"""The application of the conformance suite; see ``bench.Bench``. Nothing but Python is needed."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers."""

    def do_GET(self) -> None:
        print("GET", self.path, flush=True)
        _, what, *rest = self.path.split("/")
        if what == "exit":
            os._exit(int(rest[0]))
        body = os.environ.get(rest[0], "") if what == "variable" else "hello"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Not what http.server says, but what the suite looks for."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process has no default
    server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    print("started", os.environ.get("GREETING", ""), flush=True)
    server.serve_forever()
