"""A quota that is used up: what services call it, which the status 429 does not tell from too many calls at once."""

from __future__ import annotations

import re
from typing import Any, Final

CODES: Final = frozenset(
    {
        "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_limit_reached",
        "insufficient_balance", "insufficient_credits", "insufficient_funds", "account_deactivated", "access_terminated",
    }
)  # fmt: skip
"""Codes and types in the bodies of errors, of OpenAI, Azure OpenAI and services with the same API."""

_SPENT: Final = (
    *(rf"\b{code}\b" for code in sorted(CODES)),
    r"billing hard limit",
    r"out of call volume quota",
    r"credit balance is too low",
    r"insufficient (?:account )?(?:balance|credits?|funds)\b",
    r"requires more credits",
    r"Error code: 402\b",
    r"402 Payment Required",
)
_ALSO_PER_MINUTE: Final = (r"exceeded your current quota", r"check your plan and billing")
"""Said by OpenAI for a spent quota, with a code, and by Google also for a quota per minute."""
_SAYS_SPENT: Final = re.compile("|".join(_SPENT), re.IGNORECASE)
_SAYS_BILLING: Final = re.compile("|".join((*_SPENT, *_ALSO_PER_MINUTE)), re.IGNORECASE)


def asks_for_billing(text: str) -> bool:
    """Whether an error's message is about the plan or its billing, so that fewer calls at once are no cure."""
    return _SAYS_BILLING.search(text) is not None


def is_spent(body: Any) -> bool:
    """Whether the body of an error says that a quota is used up, by its code, its type or its message."""
    if not isinstance(body, dict):
        return False
    codes = {str(body.get("type")), str(body.get("code"))}
    return not CODES.isdisjoint(codes) or _SAYS_SPENT.search(str(body.get("message"))) is not None
