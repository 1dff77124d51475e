"""Second node: category and urgency by weighted keywords, so that the sample needs no model and no network."""

from __future__ import annotations

from collections import Counter
from typing import Any

from promptflow.core import tool
from stemming import stems

# 3: rarely used in another category; 2: usual; 1: a hint.
KEYWORDS = {
    "billing": {
        3: "invoice refund charge VAT debit bill billing receipt discount trial",
        2: "pay paid payment price pricing card bank fee money subscription tax month year plan amount offer quote",
        1: "renewal cost bought euro currency cancelled gift code checkout finance statement",
    },
    "bug": {
        3: "crash crashes bug error broken fail frozen freeze firmware",
        2: "works update wrong empty value restart shows version fix blinks notification alarm stopped display",
        1: "app since twice sensor always again screen happens fine new phone Android Chrome Firefox",
    },
    "account": {
        3: "login password log account username GDPR verification lock profile sign register",
        2: "access user mail admin permission authenticator delete owner disabled hacked SSO",
        1: "address name phone number data own email unsubscribe",
    },
    "feature_request": {
        3: "wish wishlist suggestion idea roadmap feature support integration nice planned",
        2: "would add love great could possible option please cool perfect like help version translation handy",
        1: "want maybe rather plant need export each group dark",
    },
    "shipping": {
        3: "parcel deliver delivery ship shipment courier carrier track package warehouse return dispatch customs",
        2: "express order arrive send sent label replacement exchange pack receive address",
        1: "missing day item place box set where wait",
    },
}
WEIGHTS = {
    category: {stem: weight for weight, text in levels.items() for stem in stems(text)}
    for category, levels in KEYWORDS.items()
}
HASTE = frozenset(stems("urgent urgently immediately today asap dangerous emergency hacked desperate tonight tomorrow"))
NO_HASTE = frozenset(stems("would wish idea suggestion nice question possible plan love minor maybe like typo"))


def score(ticket: dict[str, Any]) -> Counter[str]:
    """Points per category; a word in the subject counts twice, a repeated word counts once."""
    points = Counter(dict.fromkeys(WEIGHTS, 0))
    for part, factor in (("subject", 2), ("body", 1)):
        for word in set(ticket[part]):
            for category, weights in WEIGHTS.items():
                points[category] += factor * weights.get(word, 0)
    return points


def urgency(ticket: dict[str, Any]) -> str:
    """`high` for urgent words or shouting, `low` for questions and wishes, `normal` otherwise."""
    words = {*ticket["subject"], *ticket["body"]}
    if words & HASTE or ticket["capitals"] > 0.5 or ticket["exclamations"] >= 3:
        return "high"
    return "low" if words & NO_HASTE else "normal"


@tool
def classify(ticket: dict[str, Any]) -> dict[str, object]:
    """Give the category with most points, its share of all points as `confidence`, and the urgency.

    Of categories with equal points, the first one above wins, also when no word of the ticket is known.
    """
    points = score(ticket)
    category, most = points.most_common(1)[0]
    return {
        "category": category,
        "urgency": urgency(ticket),
        "confidence": round(most / max(points.total(), 1), 3),
    }
