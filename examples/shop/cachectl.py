#!/usr/bin/env python3
"""Clears the cache of the shop. The action `cache-clear` of smgr.toml runs it.

Exit codes: 0 cleared, 1 the shop refused or could not be reached, 2 usage.
"""

import argparse
import json
import sys
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    verbs = parser.add_subparsers(dest="verb", required=True)
    clear = verbs.add_parser("clear", help="forget what is cached")
    clear.add_argument("--zone", default="all")
    options = parser.parse_args()

    query = urlencode({"zone": options.zone})
    url = f"http://{options.host}:{options.port}/cache/clear?{query}"
    try:
        with urlopen(Request(url, method="POST"), timeout=5) as answer:
            forgotten = json.load(answer)["forgotten"]
    except (URLError, OSError, ValueError, KeyError) as error:
        print(f"error: the shop did not clear zone {options.zone}: {error}", file=sys.stderr)
        return 1
    print(f"cleared zone {options.zone}: {forgotten} pages forgotten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
