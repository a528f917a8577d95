"""`python -m newsletter.health PORT`: exit 0 when the web or edge server on this port of this machine answers.

The request looks as if the proxy had sent it, so that it is neither refused for its host nor sent on to https.
"""

import http.client
import os
import sys
from urllib.parse import urlsplit

SECONDS = 5.0


def status(port: int) -> int | None:
    """The HTTP status of the first page; None when nobody answers."""
    host = urlsplit(os.environ.get("SITE_URL", "")).netloc or "127.0.0.1"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/", headers={"Host": host, "X-Forwarded-Proto": "https", "Connection": "close"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def main() -> int:
    found = status(int(sys.argv[1]))
    print("no answer" if found is None else f"HTTP {found}")
    return int(found is None or found >= 500)


if __name__ == "__main__":
    sys.exit(main())
