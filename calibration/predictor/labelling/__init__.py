"""From sources of pictures to what a model said about them, with their features, kept in folders.

Knows how labels come about and are kept; does not know what is fitted to them.
"""
