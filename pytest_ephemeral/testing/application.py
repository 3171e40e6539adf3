"""The application of the conformance suite; see ``bench.Bench``. It only needs Python."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers requests, and prints them."""

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
        """Print nothing: ``do_GET`` prints each request in the form that the suite expects."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 has no default handling
    server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    print("started", os.environ.get("GREETING", ""), flush=True)
    server.serve_forever()
