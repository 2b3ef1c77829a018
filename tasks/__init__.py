"""One module per step: the plain, typed function that does the work. `tasks.runner.step` declares,
`tasks.runner.parent` runs it."""
