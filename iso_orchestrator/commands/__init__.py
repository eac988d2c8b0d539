"""Steps that run command lines."""
