"""HTTP for people and programs: checks who asks, sends tasks, and serves the page. Loads no ML engine and opens no database."""
