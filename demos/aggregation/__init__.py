"""The mean of what many actors measure: by gossip among themselves, and by one that gathers it from the store."""
