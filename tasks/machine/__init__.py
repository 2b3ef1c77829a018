"""This machine: its GPUs, and what a process takes of its memory."""
