"""Models behind servers, against a stub of one."""
