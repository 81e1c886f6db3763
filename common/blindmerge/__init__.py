"""What owners and servers must agree on: plans, statistics, merge methods.

Pure: nothing in this package imports flwr, torch or opens a socket.
"""
