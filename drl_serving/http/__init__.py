"""HTTP building blocks: problem+json, request bodies, query parameters, headers, OpenAPI."""
