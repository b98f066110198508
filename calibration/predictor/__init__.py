"""Making a predictor: collect answers, label them, fit, calibrate, judge, and write its card.

Knows scikit-learn; what it makes runs without it (m3score/routing).
"""
