"""Who scores responses, and who compares them."""
