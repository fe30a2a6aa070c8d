"""The session process: episodes, cameras and the thread in which the policy decides."""
