"""What a bounce says about the address, read off the enhanced status code (RFC 3463), never off a provider's label."""

import re
from enum import Enum


class BounceClass(Enum):
    HARD = "hard"  # the address or its domain does not exist: never mail it again
    SOFT = "soft"  # mailbox full, server busy, or nothing that can be told
    POLICY = "policy"  # about the sender: never suppress for it, raise an alarm


# Sources: RFC 3463, RFC 7505 (null MX), HYGIENE "Bounces, complaints, suppression".
_DEAD_ADDRESS = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})
_CODE = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.])")
# Exchange Online answers an unknown recipient with the code for "no answer from host".
_EXCHANGE = re.compile(r"5\.4\.1\b.*recipient address rejected", re.IGNORECASE | re.DOTALL)


def enhanced_code(*texts: str | None) -> str:
    """The first enhanced status code in what a server or provider said; "" when there is none."""
    for text in texts:
        found = _CODE.search(text or "")
        if found:
            return found[1]
    return ""


def classify(code: str, text: str = "") -> BounceClass:
    """The class of a bounce with this enhanced code ("" if it had none) and text."""
    if code in _DEAD_ADDRESS or (code == "5.4.1" and _EXCHANGE.search(text)):
        return BounceClass.HARD
    if re.match(r"[45]\.7\.", code):
        return BounceClass.POLICY
    return BounceClass.SOFT
