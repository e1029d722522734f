"""How one layer's attention was made fast, step by step; see README.md."""
