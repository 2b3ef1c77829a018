"""What steps hand to one another: manifests, the store, the registry, evidence. Knows nothing of
Prefect or LMDeploy."""
