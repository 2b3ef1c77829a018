"""Load on a running server, and its speed as a client sees it: a generator of several processes,
percentiles with intervals, two servers interleaved.

docs/load-testing.md has the definitions and the methods.
"""
