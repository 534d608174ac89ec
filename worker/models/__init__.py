"""Models: the catalogue (`catalog`), the model cache (`cache`), one module per provider.

Imports only `shared/` of scenefleet. A provider's module imports its engine at its own top; nothing here imports
such a module except the model cache, and only when it loads that model, so the parent of a forked worker stays free of torch.
"""
