"""Pictures drawn by code that nothing is asked about: for vision scores, and for the reader of print.

Knows how they are drawn; does not know who looks at them.
"""
