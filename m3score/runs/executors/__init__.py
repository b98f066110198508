"""Where the work of a run is done: the processes of this machine, or the workers of a Ray cluster.

Knows machines; does not know what is computed on them.
"""
