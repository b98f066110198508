"""A score table as one HTML file that opens from disk.

Knows tables, pictures and templates; runs no model unless a map is asked of one.
"""
