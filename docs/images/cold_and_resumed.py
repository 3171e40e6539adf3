"""Draw a boot beside a resumed machine: ``python docs/images/cold_and_resumed.py 25 0.3``.

The two numbers are seconds, as ``python -m benchmarks.machines`` prints them.
"""

from __future__ import annotations

import sys
from pathlib import Path

WIDTH, BAR, LEFT = 720, 26, 110

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 130" role="img"
     font-family="system-ui, sans-serif" font-size="14">
  <title>A cold boot takes {cold} seconds, a resumed machine {resumed}</title>
  <rect width="{width}" height="130" fill="#ffffff"/>
  <text x="{left}" y="24" fill="#57606a">Seconds from launch to the first answer</text>
  <text x="16" y="61" fill="#1f2328">booted</text>
  <rect x="{left}" y="42" width="{whole}" height="{bar}" rx="3" fill="#8c959f"/>
  <text x="{cold_at}" y="61" fill="#ffffff" text-anchor="end">{cold}</text>
  <text x="16" y="103" fill="#1f2328">resumed</text>
  <rect x="{left}" y="84" width="{part}" height="{bar}" rx="1" fill="#1a7f37"/>
  <text x="{resumed_at}" y="103" fill="#1f2328">{resumed}</text>
</svg>
"""


def main(cold: str, resumed: str) -> None:
    """Write the picture beside this file."""
    whole = WIDTH - LEFT - 20
    part = max(2.0, whole * float(resumed) / float(cold))
    text = TEMPLATE.format(
        width=WIDTH,
        left=LEFT,
        bar=BAR,
        whole=whole,
        part=round(part, 1),
        cold=cold,
        resumed=resumed,
        cold_at=LEFT + whole - 8,
        resumed_at=round(LEFT + part + 8, 1),
    )
    Path(__file__).with_name("cold-and-resumed.svg").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
