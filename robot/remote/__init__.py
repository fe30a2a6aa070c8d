"""Policies over the network: client, server, protocol and codec."""
