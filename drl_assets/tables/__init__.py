"""The Parquet tables of the pipeline: store, schemas, transforms, episode continuity."""
