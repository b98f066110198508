"""What routing promises: certificates, the pictures that they hold for, drift, and the frontier of accuracy.

Knows shares, confidence and statistical tests; does not know where predictions come from.
"""
