"""The documentation as a site: what Sphinx needs beside docs/conf.py."""
