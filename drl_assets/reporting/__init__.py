"""What people look at: figures, Markdown reports, asset metadata, provenance."""
