"""From media files with captions to shards: `lumos tokenize`."""
