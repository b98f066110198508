"""The m3score command. Thin: every command parses its options, calls the library and shows the result."""
