"""What an artifact of each kind holds: file names, schema and reader."""
