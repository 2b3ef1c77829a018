"""`lmflows`: the command line. Nothing else knows a terminal, and nothing imports it."""
