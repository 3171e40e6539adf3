"""What the shop is told by its surroundings, read once when a process starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The shop's settings.

    Attributes:
        database: The SQLite file.
        mode: Where this shop stands, for the page's footer: ``staging``, ``production``.
        language: ``en`` or ``de``.
        key: What a request to change the catalogue must bring along; empty: nobody may.
        redis: The Redis server of the packing room's bell, ``host:port``; empty: there is none.
    """

    database: Path
    mode: str
    language: str
    key: str
    redis: str

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """The settings as environment variables say."""
        beside = Path(environ.get("STATE", ".")) / "shop.db"
        return cls(
            database=Path(environ.get("SHOP_DATABASE") or beside).absolute(),
            mode=environ.get("SHOP_MODE", "development"),
            language=environ.get("SHOP_LANGUAGE", "en"),
            key=environ.get("SHOP_KEY", ""),
            redis=environ.get("SHOP_REDIS", ""),
        )
