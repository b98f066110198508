"""Features of an image and of a question that cost milliseconds.

Knows pixels and words; does not know what is predicted from them.
"""
