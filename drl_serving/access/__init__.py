"""Who may call the service: credentials, scopes, rate limits, TLS, security headers."""
