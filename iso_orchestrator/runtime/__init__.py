"""One transaction: lock, catch up, decide, append, unlock, wait until durable."""
