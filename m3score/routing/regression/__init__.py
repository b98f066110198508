"""Fitted regressors as plain arrays: predictions, gains of finer scales, and prices of tokens.

Knows numbers; does not know what a feature means.
"""
