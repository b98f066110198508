"""From traces to required tokens and complexity, and everything else that gives a picture a complexity.

Knows what the numbers mean; does not know about resuming, machines or files.
"""
