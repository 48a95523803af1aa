"""The status page: `index.html`, the words for what it shows, and the small histories behind its strips."""
