"""One module per engine that runs a model; imported when the model is loaded."""
