"""Local deployment: process supervision and the embedded PostgreSQL on one machine."""
