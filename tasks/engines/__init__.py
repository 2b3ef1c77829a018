"""One module per engine behind the protocol of `tasks.engines.protocol`."""
