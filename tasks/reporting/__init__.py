"""The report of a run: its page, tables, figures and markdown."""
