"""Servers that answer clients: their records, their supervisor, how each is started."""
