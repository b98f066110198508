"""What a picture may do to a worker process, in a module that is imported in no time."""

import os
import time

DIES, HANGS = 61, 62


def fragile(number: int) -> int:
    """-number; but one of them kills its process, and one keeps it busy."""
    if number == DIES:
        os._exit(1)
    if number == HANGS:
        time.sleep(60)
    return -number
