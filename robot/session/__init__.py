"""The session process: episodes, cameras, and the policy's thread."""
