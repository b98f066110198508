"""What people do with finished tables: select, compare, report, demo.

Knows tables; does not know how their scores came about.
"""
