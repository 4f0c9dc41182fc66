"""One file that holds an application and all that it needs: `cb build`, and what the file does when it runs.

In order: `application` is what the user says of it, `sources` which of the user's files go in, `wheels` what it depends
on, `manifest` what the file says of itself, `packing` makes it, `command` is `cb build`; `entry` and `trial` are in the
file. Source: decision record 0039.
"""
