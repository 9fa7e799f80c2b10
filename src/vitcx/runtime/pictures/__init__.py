"""Pictures in and out: reading, preprocessing, overlays, figures."""
