"""Pictures and videos from bytes to pixels, in worker processes that a damaged file cannot take down with it.

Knows decoding and its limits; knows no models and no tables.
"""
