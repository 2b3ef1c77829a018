"""Bytes as text, in decimal units: what every message, table and page writes."""

from __future__ import annotations


def mb(count: int) -> str:
    """Bytes in megabytes."""
    return f"{count / 1e6:.1f} MB"


def gb(count: int) -> str:
    """Bytes in gigabytes."""
    return f"{count / 1e9:.1f} GB"


def size(count: int) -> str:
    """Bytes in megabytes; from 1 GB on in gigabytes, with two decimals."""
    return mb(count) if count < 1e9 else f"{count / 1e9:.2f} GB"
