"""The HTTP server: `app` (routes), `desk` (admission and deadlines), `open_inference` (/v2)."""
