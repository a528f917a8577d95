"""A mail's HTML inside an admin page: in a frame without scripts, without our origin, whose links lead nowhere."""

import re

# It stands before the mail, so that it binds all of it and nothing in the mail can hide it (a second doctype or
# <head> is ignored by every browser). The frame itself has sandbox="".
POLICY = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src http: https: data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">"
    # A link that would open a new window does nothing in a sandbox that allows none.
    '<base target="_blank"><meta name="color-scheme" content="light">'
)


_DARK = re.compile(r"\(\s*prefers-color-scheme\s*:\s*dark\s*\)", re.IGNORECASE)
ALWAYS, NEVER = "(min-width: 0)", "(max-width: 0)"


def framed(html: str, *, dark: bool = False) -> str:
    """The document for an iframe's `srcdoc`: the mail below a policy that lets it show images and nothing else.

    Light or dark is the caller's choice, not that of the editor's own screen.
    """
    return f"{POLICY}{_DARK.sub(ALWAYS if dark else NEVER, html)}"
