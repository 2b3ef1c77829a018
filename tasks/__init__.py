"""One module per step: the plain, typed function that does the work. `tasks.step` declares, `tasks.child` runs it."""
