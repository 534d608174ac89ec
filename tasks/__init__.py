"""Task definitions, thin: payload -> domain -> ledger. Importing them loads no ML engine, no cv2, no av."""
