"""Memory that a client and a worker of one machine share instead of a socket's buffers. Source: docs/decisions/0018.

The one rule: whatever the other side does to that memory, it harms nobody but the one connection.
"""
