"""One module for each kind of place that images lie in.

Each turns its place into ImageItems; data/discover.py chooses among them.
"""
