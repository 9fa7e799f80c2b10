"""The HTTP server.

`server` and `protocol` (uvicorn under limits of `connections`), `access` (identity and log of a
request) and `guard` (host, origin, token) around `app` (routes); `bodies` receives, `reading`,
`forms`, `json_text` and `base64_text` read, `admission` lets in and asks the pipeline, `answers`
writes; `open_inference` reads and writes /v2. `figures` counts, `logs` writes the log.
"""
