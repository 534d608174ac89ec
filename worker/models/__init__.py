"""The models: what there is (`catalog`), which are loaded (`cache`), one module per provider.

Imports `shared/` and nothing else of ours. A provider's module imports its engine at its own top; nothing here imports
such a module except the model cache, and only when it loads that model, so the parent of a forked worker stays free of torch.
"""
