"""Training of the models that the package bundles.

Knows optimisers and losses; knows no tables and no command-line options of m3score itself.
"""
