"""Files: written whole or not at all, hashes, JSON and YAML."""
