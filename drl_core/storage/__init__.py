"""Durable storage beside the landing zone: PostgreSQL, the outbox in front of it, encryption.

Attack patterns go in, encrypted where they are sensitive, directly or through the outbox while the
database is away; connections and rows come out.
"""
