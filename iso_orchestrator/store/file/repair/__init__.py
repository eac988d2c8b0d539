"""Check the files of a store, and repair damaged workflows."""
