"""Columns, types and file formats of the tables that come in and go out.

Knows bytes and columns; does not know what a row means.
"""
