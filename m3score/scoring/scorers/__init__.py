"""The scorers of this room, a file for each with its options beside it; larger models have one of their own.

Knows how each number comes about; does not know runs, and imports no torch before a model is loaded.
"""
