"""What is on the shelves of every shop that is not the real one."""

from __future__ import annotations

from shop import catalogue, database
from shop.catalogue import Product
from shop.settings import Settings

TEAS = [
    Product(
        slug="assam",
        name="Assam Second Flush",
        description="Malty, dark, and on good terms with milk.",
        colour="#8a3b12",
        price=950,
        stock=40,
    ),
    Product(
        slug="darjeeling",
        name="Darjeeling First Flush",
        description="The spring picking: light, flowery, a little green.",
        colour="#c98b2b",
        price=1450,
        stock=25,
    ),
    Product(
        slug="earl-grey",
        name="Earl Grey",
        description="Black tea with the oil of bergamot, and of bergamot only.",
        colour="#5d4a66",
        price=890,
        stock=60,
    ),
    Product(
        slug="genmaicha",
        name="Genmaicha",
        description="Green tea with roasted rice. Smells of popcorn, tastes of autumn.",
        colour="#7f8f3a",
        price=990,
        stock=30,
    ),
    Product(
        slug="gyokuro",
        name="Gyokuro",
        description="Three weeks in the shade, two minutes in the pot, not too hot.",
        colour="#2f6b4f",
        price=3200,
        stock=3,
    ),
    Product(
        slug="lapsang-souchong",
        name="Lapsang Souchong",
        description="Dried over pine fires. Some say campfire, some say home.",
        colour="#3a3330",
        price=1120,
        stock=18,
    ),
    Product(
        slug="rooibos",
        name="Rooibos",
        description="No tea at all, strictly speaking, and welcome at any hour.",
        colour="#b5482a",
        price=720,
        stock=80,
    ),
    Product(
        slug="sencha",
        name="Sencha Fukamushi",
        description="Steamed long, so the cup is deep green and soft.",
        colour="#4d8b3d",
        price=1380,
        stock=22,
    ),
]


def load(settings: Settings) -> None:
    """Put every tea on its shelf, as many as there should be."""
    with database.transaction(settings.database) as open_database:
        for tea in TEAS:
            catalogue.put(open_database, tea)
