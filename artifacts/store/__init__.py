"""Where artifacts live: a folder or an S3 prefix, with one layout and one protocol."""
