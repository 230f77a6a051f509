"""Programs beside the tests, each to be run as a script."""
