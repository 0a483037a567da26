"""RFC 8785 by another implementation: reads a JSON text a line, prints the canonical bytes in hexadecimal digits, or why
there are none."""

import json
import sys

import rfc8785

for line in sys.stdin.buffer:
    try:
        print("bytes", rfc8785.dumps(json.loads(line)).hex())
    except Exception as error:  # a no is an answer
        print("none:", type(error).__name__)
