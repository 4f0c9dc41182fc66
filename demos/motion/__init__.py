"""Robots that share their best path: motion planning by functions that share one best path while they run."""
