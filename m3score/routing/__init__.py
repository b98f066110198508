"""From cheap features to predicted tokens, with certificates, prices and drift tests; without torch.

Knows predictors; never runs a model.
"""
