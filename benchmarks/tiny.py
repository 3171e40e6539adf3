"""A minimal application: responds to every request with its name."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Responds to every request with ``tiny``."""

    def do_GET(self) -> None:
        """Send the response."""
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"tiny")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


# Runs until the process is killed.
HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
