"""What a seat keeps on its disk: a log of what was accepted, and cells that a checkpoint took out of it.

The one rule: joining everything that is here gives the state again, so order and repetition do not matter, and
a record that is not as it was written is reported, never served. Source: docs/decisions/0010.
"""
