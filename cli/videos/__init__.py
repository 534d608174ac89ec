"""Commands about videos."""
