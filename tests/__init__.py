"""Tests: offline, on a CPU."""
