"""The coordinator of a federation: keys and certificates, sites, the supervised services, runs and releases."""
