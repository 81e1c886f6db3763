"""Secure aggregation: double-masked sums. SPEC.md beside this file has the numbered steps.

Pure: no sockets, files, clock or global randomness. The two state machines that run it are
`blindmerge_client.protocol` and `blindmerge_server.protocol`.
"""
