"""Running everything on one machine: processes and the embedded PostgreSQL."""
