"""Draw a timeline as SVG, alone or in an HTML page, without scripts, fonts or other files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from pytest_ephemeral import files
from pytest_ephemeral.pytest_plugin.timeline import (
    NOTICEABLE,
    PHASES,
    EnvironmentRow,
    Span,
    TestRow,
    Timeline,
)
from pytest_ephemeral.text import one_line

WIDTH: Final = 1000
LABELS: Final = 150
ROW: Final = 26
BAR: Final = 18
TOP: Final = 56
#: The largest width of a letter in pixels.
LETTER: Final = 7

COLOURS: Final = {
    "bake": "#8e6bbf",
    "launch": "#2f6fb3",
    "ready": "#6ba3d6",
    "seed": "#3aa7a0",
    "baseline": "#2d7f79",
    "up": "#d6e4f0",
    "rollback": "#b5577a",
    "destroy": "#8a8f98",
    "passed": "#4c9f50",
    "failed": "#cc3d3d",
    "skipped": "#d9a441",
    "rerun": "#d9a441",
    "waits": "url(#waits)",
}

_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" font-family="system-ui, sans-serif" font-size="12" role="img" \
aria-label="Timeline of a test run">
<defs><pattern id="waits" width="6" height="6" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><rect width="6" height="6" fill="#f5e2bd"/>\
<rect width="2" height="6" fill="#d08a1d"/></pattern></defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>
"""

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Timeline of a test run</title>
<style>body {{ margin: 1rem; font-family: system-ui, sans-serif; }} svg {{ max-width: 100%; \
height: auto; }}</style>
{svg}</html>
"""


class Scale(NamedTuple):
    """Converts times to horizontal positions."""

    begin: float
    end: float

    def x(self, at: float) -> float:
        """The distance of a time from the left edge, in pixels."""
        share = (at - self.begin) / (self.end - self.begin)
        return LABELS + share * (WIDTH - LABELS - 20)


def write(timeline: Timeline, file: Path) -> None:
    """Write a timeline to a file.

    Args:
        timeline: The timeline.
        file: The file; its format is HTML if its name ends with ``.html``, else SVG.

    Raises:
        OSError: The file can't be written.
    """
    svg = draw_svg(timeline)
    text = _PAGE.format(svg=svg) if file.suffix.lower() in {".html", ".htm"} else svg
    files.replace(file, [text.encode()])


def draw_svg(timeline: Timeline) -> str:
    """A timeline as SVG."""
    spans = [one.span for one in timeline.tests]
    spans += [span for one in timeline.environments for span in one.spans]
    begin = min((span.start for span in spans), default=0.0)
    end = max((span.stop for span in spans), default=begin)
    scale = Scale(begin, max(end, begin + 0.001))
    workers = sorted({one.worker for one in timeline.tests})
    rows = {worker: TOP + ROW * at for at, worker in enumerate(workers)}
    lanes = list(_lanes(timeline.environments))
    below = TOP + ROW * len(workers) + 10
    places = {one.id: below + ROW * at for at, (_, lane) in enumerate(lanes) for one in lane}
    height = below + ROW * len(lanes) + 10
    parts = [_HEAD.format(width=WIDTH, height=height), *_legend(timeline), *_axis(scale, height)]
    parts += [_label(worker, y) for worker, y in rows.items()]
    parts += [_label(name, below + ROW * at) for at, (name, _) in enumerate(lanes)]
    for environment in timeline.environments:
        parts += _environment(environment, places[environment.id], scale)
    for test in timeline.tests:
        parts += _test(test, rows[test.worker], places, scale)
    return "\n".join([*parts, "</svg>\n"])


def _lanes(environments: Iterable[EnvironmentRow]) -> Iterator[tuple[str, list[EnvironmentRow]]]:
    """The rows of each template: each row has environments that do not overlap."""
    templates: dict[str, list[list[EnvironmentRow]]] = {}
    for one in environments:
        own = templates.setdefault(one.template, [])
        free = (lane for lane in own if lane[-1].spans[-1].stop <= one.spans[0].start)
        lane = next(free, None)
        if lane is None:
            own.append([one])
        else:
            lane.append(one)
    for template, own in templates.items():
        yield from ((template, lane) for lane in own)


def _environment(one: EnvironmentRow, y: float, scale: Scale) -> Iterator[str]:
    for span in one.spans:
        yield _bar(span, y, scale, f"{one.id}: {span.kind}, {_seconds(span.stop - span.start)}")
    first = next((span for span in one.spans if span.kind == "up"), None)
    if first and scale.x(first.stop) - scale.x(first.start) > LETTER * len(one.id) + 8:
        yield _text(scale.x(first.start) + 4, y + 13, one.id)


def _test(test: TestRow, y: float, places: Mapping[str, float], scale: Scale) -> Iterator[str]:
    span = test.span
    yield _bar(span, y, scale, f"{test.name}: {span.kind}, {_seconds(span.stop - span.start)}")
    for wait in test.waits:
        if wait.stop - wait.start < NOTICEABLE:
            continue
        title = f"{test.name}: waited {_seconds(wait.stop - wait.start)} for {wait.subject}"
        yield _bar(Span("waits", wait.start, wait.stop), y, scale, title)
        if (place := places.get(wait.subject)) is not None:
            x = scale.x(wait.stop)
            yield (
                f'<line class="wait" x1="{x:.1f}" y1="{y + BAR}" x2="{x:.1f}" y2="{place}" '
                'stroke="#d08a1d" stroke-dasharray="3 2"/>'
            )


def _bar(span: Span, y: float, scale: Scale, title: str) -> str:
    x = scale.x(span.start)
    width = max(scale.x(span.stop) - x, 1.0)
    return (
        f'<rect class="{span.kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" '
        f'rx="2" fill="{COLOURS.get(span.kind, "#8a8f98")}" stroke="#ffffff" stroke-width="0.5">'
        f"<title>{_escape(title)}</title></rect>"
    )


def _axis(scale: Scale, height: float) -> Iterator[str]:
    """Vertical lines with times: at most ten, at round numbers of seconds."""
    length = scale.end - scale.begin
    steps = (unit * 10.0**power for power in range(-3, 6) for unit in (1, 2, 5))
    step = next(step for step in steps if length / step <= 10)
    for tick in range(int(length / step) + 1):
        x = scale.x(scale.begin + tick * step)
        yield f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height}" stroke="#e3e6ea"/>'
        yield _text(x + 2, TOP - 12, f"{tick * step:g} s", "#5b626b")


def _legend(timeline: Timeline) -> Iterator[str]:
    outcomes = sorted({one.span.kind for one in timeline.tests})
    x = float(LABELS)
    for kind in (*outcomes, "waits", *PHASES):
        yield (
            f'<rect x="{x}" y="8" width="12" height="12" rx="2" '
            f'fill="{COLOURS.get(kind, "#8a8f98")}"/>'
        )
        yield _text(x + 16, 18, kind)
        x += 16 + LETTER * len(kind) + 16


def _label(text: str, y: float) -> str:
    longest = LABELS // LETTER - 2
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return _text(8, y + 13, short)


def _text(x: float, y: float, text: str, colour: str = "#1c2127") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{colour}">{_escape(text)}</text>'


def _escape(text: str) -> str:
    return escape(one_line(text))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"
