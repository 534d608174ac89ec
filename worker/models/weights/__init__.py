"""The files of models: fetched, verified, recorded."""
