"""What makes a verdict: statistics, items, generation checks, the rules."""
