"""What runs when: one module per Prefect flow, and the command line."""
