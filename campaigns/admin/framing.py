"""A mail's HTML inside an admin page: in a frame without scripts, without our origin, whose links lead nowhere."""

# It stands before the mail, so that it binds all of it and nothing in the mail can hide it (a second doctype or
# <head> is ignored by every browser). The frame itself has sandbox="".
POLICY = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src http: https: data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">"
    # A link that would open a new window does nothing in a sandbox that allows none.
    '<base target="_blank"><meta name="color-scheme" content="light">'
)


def framed(html: str) -> str:
    """The document for an iframe's `srcdoc`: the mail below a policy that lets it show images and nothing else."""
    return f"{POLICY}{html}"
