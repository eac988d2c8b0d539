"""Mutexes, leases and shared state."""
