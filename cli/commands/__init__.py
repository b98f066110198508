"""One file for each command: read the options, call the library, show the result."""
