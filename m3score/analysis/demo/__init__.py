"""A page in the browser: one picture, one question, every budget of tokens.

Knows one model at a time; keeps nothing that it is shown.
"""
