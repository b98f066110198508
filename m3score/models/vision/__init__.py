"""How complex a picture is to a model's vision tower, and what there is to read in it: no question is asked.

Knows features, pixels and drawings' statistics; does not know the language model, tables, or who draws.
"""
