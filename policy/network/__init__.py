"""The network: architecture, token layout, towers, trunk, action heads and losses."""
