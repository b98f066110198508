"""Pictures drawn from seeds, with what is known about them.

Knows shapes, letters and their places; knows no models.
"""
