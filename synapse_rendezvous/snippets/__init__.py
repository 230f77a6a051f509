"""Configurations for reverse proxies."""
