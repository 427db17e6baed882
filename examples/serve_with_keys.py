"""A server that wants keys. Run it with a port, or without for 8000; Ctrl-C ends it."""

import sys
from functools import partial

from asurge import Engine
from asurge.server import ApiServer


def main(port: int) -> None:
    server = ApiServer(Engine("demo"), require_api_key=True, requests_per_minute=60)
    print("key:", server.generate_api_key(label="notebook"))  # shown here and never again: the server keeps its hash
    print("curl -H 'Authorization: Bearer KEY' URL/v1/models", flush=True)
    server.fire(port=port, tell=partial(print, flush=True))  # returns once stopped, with requests under way done
    for name, used in server.keys.usage().items():
        print(f"{name} {used['label']}: {used['requests']} requests, {used['completion_tokens']} tokens")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
