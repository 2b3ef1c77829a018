"""The S3 store: a prefix of a bucket on AWS S3, or on a server that speaks its protocol."""
