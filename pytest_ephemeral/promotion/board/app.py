"""The board as a web application: one page, and one form for decisions.

Everyone with the token can see the page and decide. The token is in the link; after the first visit
it is replaced by a cookie. Forms have a second token against requests from other sites (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any, Final

import flask
from flask import Response, request

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion import approval
from pytest_ephemeral.promotion.board import filters, limits
from pytest_ephemeral.promotion.board.view import gather

LONGEST_NAME: Final = 80
LONGEST_COMMENT: Final = 2000

_YEAR: Final = 365 * 86400
_DECISIONS: Final = ("approved", "rejected")

#: The page may use no code, frames or forms of other sites.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create(project: Project, token: str) -> Any:
    """Make the WSGI application.

    Args:
        project: The project with the environments.
        token: The token to sign in with.
    """
    app = flask.Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = limits.BODY
    app.jinja_env.filters.update(filters.FILTERS)
    board = _Requests(project, token)
    app.before_request(board.let_in)
    app.after_request(_secure)
    app.add_url_rule("/", "page", board.page)
    app.add_url_rule("/decide/<id>", "decide", board.decide, methods=["POST"])
    return app


class _Requests:
    def __init__(self, project: Project, token: str) -> None:
        self._project = project
        self._token = token
        self._session = _derive(token, "session")
        self._form_token = _derive(token, "form")
        # Cookies do not depend on the port: each board on this host needs a name of its own.
        self._cookie = f"board-{_derive(token, 'cookie')[:8]}"

    def let_in(self) -> Any:
        """Refuse requests without the token; replace a token in the link by a cookie."""
        if request.endpoint == "static":
            return None
        given = request.args.get("token", "")
        if given and _is_same(given, self._token):
            entered = flask.redirect(flask.url_for("page"), 303)
            self._remember(entered, self._cookie, self._session)
            return entered
        if not given and (self._has_cookie() or self._has_header()):
            return None
        return Response(flask.render_template("locked.html", wrong=bool(given)), 401)

    def page(self, problem: str = "") -> Any:
        """The page with all environments and requests."""
        try:
            board = gather(self._project, datetime.now(UTC))
        except EphemeralError as error:
            return Response(flask.render_template("broken.html", problem=str(error)), 503)
        return flask.render_template(
            "board.html",
            board=board,
            problem=problem,
            form_token=self._form_token,
            name=request.cookies.get(f"{self._cookie}-name", ""),
            longest_name=LONGEST_NAME,
            longest_comment=LONGEST_COMMENT,
        )

    def decide(self, id: str) -> Any:
        """Record a decision, and show the page again."""
        form = request.form
        if not self._has_header() and not _is_same(form.get("form-token", ""), self._form_token):
            return self._refuse("this form has expired: decide again", 403)
        name, decision = form.get("by", "").strip(), form.get("decision", "")
        comment = form.get("comment", "").strip()
        if decision not in _DECISIONS or not name:
            return self._refuse("your name or the decision is missing", 400)
        if len(name) > LONGEST_NAME or len(comment) > LONGEST_COMMENT:
            return self._refuse("the name or the comment is too long", 400)
        try:
            approval.decide(
                self._project.ledger,
                id,
                decision,  # type: ignore[arg-type]  # checked against _DECISIONS above
                by=name,
                comment=comment,
                now=datetime.now(UTC),
            )
        except EphemeralError as error:
            return self._refuse(str(error), 409)
        decided = flask.redirect(flask.url_for("page", _anchor="decided"), 303)
        self._remember(decided, f"{self._cookie}-name", name)
        return decided

    def _refuse(self, problem: str, status: int) -> Any:
        return flask.make_response(self.page(problem), status)

    def _has_cookie(self) -> bool:
        return _is_same(request.cookies.get(self._cookie, ""), self._session)

    def _has_header(self) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and _is_same(given, self._token)

    def _remember(self, response: Any, name: str, value: str) -> None:
        # Lax, not Strict: links from other sites must work. The form token protects decisions.
        response.set_cookie(
            name, value, max_age=_YEAR, httponly=True, samesite="Lax", secure=request.is_secure
        )


def _secure(response: Any) -> Any:
    response.headers.update(_HEADERS)
    return response


def _derive(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _is_same(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
