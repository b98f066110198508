"""What every room needs and no room owns: errors, files, limits, declarations, statistics, profiling.

Knows the operating system; knows nothing about images, tables or models.
"""
