"""What the pages say, in the languages the shop speaks."""

from __future__ import annotations

TEXTS = {
    "en": {
        "title": "The Tea Cupboard",
        "motto": "Eight teas, and time to drink them.",
        "empty": "The cupboard is bare. Come back tomorrow.",
        "left": "left",
        "sold_out": "sold out",
        "back": "All teas",
        "name": "Your name",
        "quantity": "How many",
        "order": "Order",
        "thanks": "Thank you",
        "order_number": "Order",
        "placed": "placed; it will be packed in a moment",
        "packed": "packed, and on its way",
        "total": "Total",
        "missing": "There is no such page.",
    },
    "de": {
        "title": "Der Teeschrank",
        "motto": "Acht Tees und die Zeit, sie zu trinken.",
        "empty": "Der Schrank ist leer. Schauen Sie morgen wieder herein.",
        "left": "vorrätig",
        "sold_out": "ausverkauft",
        "back": "Alle Tees",
        "name": "Ihr Name",
        "quantity": "Wie viele",
        "order": "Bestellen",
        "thanks": "Vielen Dank",
        "order_number": "Bestellung",
        "placed": "eingegangen; sie wird gleich gepackt",
        "packed": "gepackt und unterwegs",
        "total": "Summe",
        "missing": "Diese Seite gibt es nicht.",
    },
}


def money(cents: int, language: str) -> str:
    """A price as people write it: ``€ 9.50``, ``9,50 €``."""
    amount = f"{cents / 100:.2f}"
    return f"{amount.replace('.', ',')} €" if language == "de" else f"€ {amount}"
