"""The smallest application there is: answers everything with its name."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers."""

    def do_GET(self) -> None:
        """Say the same to everything."""
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"tiny")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


# serve_forever looks every 0.5 s whether to stop; nothing here ever asks it to.
HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
