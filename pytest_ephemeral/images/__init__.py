"""Images: from a recipe to a baked image, here, exactly as it was baked."""
