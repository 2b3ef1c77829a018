"""How flows run steps: Prefect tasks, GPU slots, the display, what is published."""
