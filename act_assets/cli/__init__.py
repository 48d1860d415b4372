"""Every screen of the `act` command."""
